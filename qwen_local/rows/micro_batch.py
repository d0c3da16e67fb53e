"""Rows cut into the micro-batches of one step, padded or packed: the same for both engines.

Shapes: B = rows of a micro-batch, W = its padded width, N = its supervised positions. Packed, all
rows are one: B = 1, and W is the sum of their lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from qwen_local.backends.base import Scores
from qwen_local.rows.planner import MOST, PADDED, Layout, micro_batches, padded
from qwen_local.rows.rows import IGNORE, Rows


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Input, and where in it something is to be predicted."""

    ids_BW: np.ndarray
    """int32 [B, W]. Rectangles are padded on the right, where under a causal mask padding reaches
    nothing before it."""
    lengths: tuple[int, ...]
    """Of the rows, in their order; packed they lie one behind the other."""
    positions_N: np.ndarray
    """int64 [N]: supervised positions, counted through the flattened [B * W]."""
    targets_N: np.ndarray
    """int64 [N]: the token to predict there."""
    rows_N: np.ndarray
    """int64 [N]: the row that each position belongs to, as numbered in the `Rows` given."""


def cut(
    rows: Rows, *, budget: int, layout: Layout = PADDED, most: int = MOST
) -> Iterator[MicroBatch]:
    """The micro-batches of `rows`, each within `budget` positions (a longer row is alone).

    Args:
        rows: at least one.
        budget: B * W at most.
        layout: see `micro_batches`.
        most: see `micro_batches`.
    """
    for indices in micro_batches(rows.lengths_R.tolist(), budget=budget, layout=layout, most=most):
        yield (_pack if layout.packed else _pad)(rows, indices, layout)


def _pad(rows: Rows, indices: list[int], layout: Layout) -> MicroBatch:
    ids_BW, lengths_B, targets_BW = padded(rows, indices, widths=layout.widths)
    row, column = np.nonzero(targets_BW != IGNORE)
    return MicroBatch(
        ids_BW=ids_BW,
        lengths=tuple(lengths_B.tolist()),
        positions_N=row * ids_BW.shape[1] + column,
        targets_N=targets_BW[row, column].astype(np.int64),
        rows_N=np.asarray(indices, np.int64)[row],
    )


def _pack(rows: Rows, indices: list[int], layout: Layout) -> MicroBatch:
    chosen = rows.take(indices)
    (positions_N,) = np.nonzero(chosen.targets_T != IGNORE)
    return MicroBatch(
        ids_BW=chosen.ids_T[None],
        lengths=tuple(chosen.lengths_R.tolist()),
        positions_N=positions_N,
        targets_N=chosen.targets_T[positions_N].astype(np.int64),
        rows_N=np.repeat(np.asarray(indices, np.int64), chosen.lengths_R)[positions_N],
    )


def scores(
    rows: int, batches: Iterable[MicroBatch], losses: Callable[[MicroBatch], np.ndarray]
) -> Scores:
    """The losses of each row, summed.

    Args:
        rows: how many there are.
        batches: every row of them once.
        losses: negative log-likelihood at each supervised position of a micro-batch, [N].
    """
    nll_R = np.zeros(rows, np.float64)
    tokens_R = np.zeros(rows, np.int64)
    for batch in batches:
        np.add.at(nll_R, batch.rows_N, losses(batch).astype(np.float64))
        np.add.at(tokens_R, batch.rows_N, 1)
    return Scores(nll_R, tokens_R)
