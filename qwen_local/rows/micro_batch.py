"""Rows cut into the micro-batches of one step, padded or packed: the same for both engines.

Shapes: B = rows of a micro-batch, W = its padded width, N = its supervised positions. Packed, all
rows are one: B = 1, and W is the sum of their lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qwen_local.rows.planner import MOST, PADDED, Layout, micro_batches, widths_of
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import Targets


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Input tokens, and the targets at the supervised positions among them."""

    ids_BW: np.ndarray
    """int32 [B, W]. Rectangles are padded on the right, where under a causal mask padding reaches
    nothing before it."""
    lengths: tuple[int, ...]
    """Length of each row, in their order; packed rows lie one behind the other."""
    positions_N: np.ndarray
    """int64 [N]: supervised positions, counted through the flattened [B * W]."""
    targets: Targets
    """The N targets at these positions, in the same order."""
    rows_N: np.ndarray
    """int64 [N]: the row that each position belongs to, as numbered in the `Rows` given."""


def cut(
    rows: Rows, *, budget: int, layout: Layout = PADDED, most: int = MOST
) -> Iterator[MicroBatch]:
    """Yield the micro-batches of `rows`, each within `budget` positions (a longer row is alone).

    Args:
        rows: at least one.
        budget: B * W at most.
        layout: see `micro_batches`.
        most: see `micro_batches`.
    """
    for indices in micro_batches(rows.lengths_R.tolist(), budget=budget, layout=layout, most=most):
        yield _micro_batch(rows, indices, layout)


def _micro_batch(rows: Rows, indices: list[int], layout: Layout) -> MicroBatch:
    chosen = rows.take(indices)
    lengths_B = chosen.lengths_R
    if layout.packed:
        inside_BW = np.ones((1, chosen.tokens), bool)
    else:
        width = int(widths_of(lengths_B, layout.widths).max())
        inside_BW = np.arange(width) < lengths_B[:, None]
    ids_BW = np.zeros(inside_BW.shape, np.int32)
    # A boolean index goes through the rectangle row by row, as the flat rows lie.
    ids_BW[inside_BW] = chosen.ids_T
    supervised_N = chosen.targets.supervised_N
    return MicroBatch(
        ids_BW=ids_BW,
        lengths=tuple(lengths_B.tolist()),
        positions_N=np.flatnonzero(inside_BW)[supervised_N],
        targets=chosen.targets[supervised_N],
        rows_N=np.repeat(np.asarray(indices, np.int64), lengths_B)[supervised_N],
    )
