"""Which rows an engine works on together, and in which order. Pure; the same for both engines.

Shapes: B = rows of one micro-batch, W = their common width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qwen_local.rows import IGNORE, Rows


def epoch_order(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of n rows in an epoch: int64 [n], from seed and epoch alone.

    >>> epoch_order(5, seed=0, epoch=1).tolist()
    [1, 4, 3, 0, 2]
    """
    return np.random.default_rng([seed, epoch]).permutation(n)


def rounded_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that holds `length`.

    >>> rounded_up(33, 32), rounded_up(64, 32)
    (64, 64)
    """
    return -(-length // multiple) * multiple


def micro_batches(lengths: Sequence[int], *, budget: int, multiple: int = 1) -> list[list[int]]:
    """The rows of one optimizer step in groups that fit into memory together.

    The longest rows come first, so that a budget which is too large fails at once; rows of one
    length keep their order. Similar lengths meet, so little is padded.

    Args:
        lengths: tokens of each row, at least one.
        budget: tokens of a group, padding included: rows x (widest row, rounded up) stays within
            it. A row that is larger by itself makes a group of its own.
        multiple: widths are rounded up to a multiple of this.

    Returns:
        Indices into `lengths`, every one of them once.

    >>> micro_batches([3, 9, 4, 8], budget=20)
    [[1, 3], [2, 0]]
    >>> micro_batches([3, 9, 4, 8], budget=20, multiple=16)
    [[1], [3], [2], [0]]
    """
    groups: list[list[int]] = []
    room = 0  # rows that the open group can still take
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if room == 0:
            groups.append([])
            room = max(1, budget // rounded_up(int(lengths[index]), multiple))
        groups[-1].append(index)
        room -= 1
    return groups


class Padded(NamedTuple):
    """A micro-batch as a rectangle, filled up on the right."""

    ids_BW: np.ndarray
    """int32 [B, W], 0 beyond the end of a row."""
    lengths_B: np.ndarray
    """int32 [B]."""
    targets_BW: np.ndarray
    """int32 [B, W], IGNORE beyond the end of a row."""


def padded(rows: Rows, indices: Sequence[int], *, multiple: int) -> Padded:
    """These rows side by side; the width is the longest, rounded up to `multiple`.

    >>> rows = Rows.from_pairs([([1, 2, 3], [2, -100, 4]), ([5], [6])])
    >>> ids, lengths, targets = padded(rows, [0, 1], multiple=4)
    >>> ids.tolist(), lengths.tolist()
    ([[1, 2, 3, 0], [5, 0, 0, 0]], [3, 1])
    >>> targets.tolist()
    [[2, -100, 4, -100], [6, -100, -100, -100]]
    """
    lengths_B = rows.lengths_R[list(indices)].astype(np.int32)
    shape = len(indices), rounded_up(int(lengths_B.max(initial=0)), multiple)
    ids_BW, targets_BW = np.zeros(shape, np.int32), np.full(shape, IGNORE, np.int32)
    for b, index in enumerate(indices):
        ids, targets = rows.row(index)
        ids_BW[b, : len(ids)], targets_BW[b, : len(ids)] = ids, targets
    return Padded(ids_BW, lengths_B, targets_BW)
