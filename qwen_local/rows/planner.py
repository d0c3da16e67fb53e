"""Which rows an engine works on together, and in which order. Pure; the same for both engines.

Shapes: B = rows of one micro-batch, W = their common width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qwen_local.rows.rows import IGNORE, Rows


def epoch_order(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of n rows in an epoch: int64 [n], from seed and epoch alone.

    >>> epoch_order(5, seed=0, epoch=1).tolist()
    [1, 4, 3, 0, 2]
    """
    return np.random.default_rng([seed, epoch]).permutation(n)


MOST = 8
"""Micro-batches of a step that padding may be saved with, where memory would hold them in fewer."""
ONE_MORE = 64
"""A micro-batch more costs as much as so many positions; less padding than that is not worth it."""
LARGE = 256
"""More rows than these are cut into full groups: sorted, they have hardly any padding."""
SIZES = tuple(sorted(m * 2**n for n in range(20) for m in (1, 3) if m * 2**n > 2 or m == 1))
"""Rows of a group where few shapes are wanted: 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a micro-batch lie together."""

    widths: tuple[int, ...] = ()
    """Which a rectangle may have, rising, and then of `SIZES` rows; none for any width and any
    number of rows. A row beyond the widest has its own."""
    packed: bool = False
    """One behind the other without padding, instead of side by side in a rectangle."""

    def positions(self, lengths_R: np.ndarray) -> int:
        """What a micro-batch of rows of these lengths (int64 [R], at least one) computes."""
        if self.packed:
            return int(lengths_R.sum())
        return len(lengths_R) * int(widths_of(lengths_R, self.widths).max())


PADDED, PACKED = Layout(), Layout(packed=True)


def micro_batches(
    lengths: Sequence[int], *, budget: int, layout: Layout = PADDED, most: int = MOST
) -> list[list[int]]:
    """The rows of one optimizer step in groups that fit into memory together.

    Sorted by length, the rows are cut where it leaves the least padding, into no more groups than
    `most` or than memory asks for. The longest come first, so that a budget which is too large
    fails at once; rows of one length keep their order. Packed rows have no padding, and are cut
    where the budget is full.

    Args:
        lengths: tokens of each row, at least one.
        budget: positions of a group, padding included. A row that is larger by itself makes a group
            of its own.
        layout: of a group.
        most: groups, where memory would hold the rows in fewer.

    Returns:
        Indices into `lengths`, every one of them once.

    >>> micro_batches([300, 900, 301, 890], budget=2000)
    [[1, 3], [2, 0]]
    >>> micro_batches([300, 900, 301, 890], budget=2000, layout=Layout((512, 1024)))
    [[1], [3], [2, 0]]
    >>> micro_batches([300, 900, 301, 890], budget=2000, layout=PACKED)
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    length_R = np.array([lengths[i] for i in order], np.int64)
    if layout.packed:
        counts = _full(length_R, budget)
    else:
        width_R, few = widths_of(length_R, layout.widths), bool(layout.widths)
        counts = _filled(width_R, budget, few=few)
        if 1 < len(order) <= LARGE:
            counts = _best(width_R, budget, most=max(most, len(counts)), few=few)
    ends = np.cumsum(counts)
    return [order[end - n : end] for n, end in zip(counts, ends.tolist(), strict=True)]


def widths_of(lengths_R: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """int64 [R]: the smallest of the widths that holds each row, or its own length.

    >>> widths_of(np.array([3, 16, 17, 99]), [16, 32]).tolist()
    [16, 16, 32, 99]
    """
    if not len(widths):
        return lengths_R
    at = np.searchsorted(widths, lengths_R)
    known = np.asarray(widths, np.int64)[np.minimum(at, len(widths) - 1)]
    return np.where(at < len(widths), known, lengths_R)


def _full(length_R: np.ndarray, budget: int) -> list[int]:
    """Rows of each group where every group takes what fits behind each other."""
    counts: list[int] = []
    room = 0
    for length in length_R.tolist():
        if length <= room:
            counts[-1] += 1
            room -= length
        else:
            counts.append(1)
            room = budget - length
    return counts


def _filled(width_R: np.ndarray, budget: int, *, few: bool) -> list[int]:
    """Rows of each group where every group takes as many as fit."""
    counts: list[int] = []
    start = 0
    while start < len(width_R):
        room = min(max(1, budget // int(width_R[start])), len(width_R) - start)
        if few:
            room = max(size for size in SIZES if size <= room)
        counts.append(room)
        start += room
    return counts


def _best(width_R: np.ndarray, budget: int, *, most: int, few: bool) -> list[int]:
    """Rows of each group where all groups together cost least: padded positions, and `ONE_MORE`
    for each group.

    The shortest way from the first row to behind the last, by dynamic programming over the number
    of groups: cost[j] is the least cost of the first j rows.
    """
    ends = np.arange(len(width_R) + 1)
    rows = ends[None, :] - ends[:-1, None]  # of a group from row i to row j
    positions = rows * width_R[:, None]
    possible = (rows == 1) | ((rows > 1) & (positions <= budget))
    if few:
        possible &= np.isin(rows, SIZES)
    step = np.where(possible, positions + ONE_MORE, np.inf)
    cost = np.full(len(ends), np.inf)
    cost[0] = 0
    came_from: list[np.ndarray] = []
    finals: list[float] = []
    for _ in range(min(most, len(width_R))):
        ways = cost[:-1, None] + step
        came_from.append(ways.argmin(axis=0))
        cost = ways.min(axis=0)
        finals.append(float(cost[-1]))
        cost[0] = np.inf
    counts: list[int] = []
    end = len(width_R)
    for origins in reversed(came_from[: int(np.argmin(finals)) + 1]):
        start = int(origins[end])
        counts.append(end - start)
        end = start
    return counts[::-1]


MOST_WIDTHS = 16
FINEST = 1024
"""Different lengths that are told apart where widths are chosen."""


def choose_widths(lengths_R: np.ndarray) -> tuple[int, ...]:
    """The `MOST_WIDTHS` widths that rows of these lengths are padded to with the least padding.

    Args:
        lengths_R: int64 [R], at least one.

    Returns:
        Rising; the last holds the longest row. Multiples of 8 as far as there are enough of them.

    >>> choose_widths(np.array([5, 30, 31, 100]))
    (8, 32, 104)
    """
    grain = 8 * max(1, -(-int(lengths_R.max()) // (8 * FINEST)))
    width_S, rows_S = np.unique(-(-lengths_R // grain) * grain, return_counts=True)
    before = np.concatenate([[0], np.cumsum(rows_S)])
    # cost[j]: positions of the j shortest lengths, under so many widths as rounds are done.
    rows = before[None, 1:] - before[:-1, None]
    step = np.where(rows > 0, rows * width_S[None, :], np.inf)
    cost = np.concatenate([[0.0], np.full(len(width_S), np.inf)])
    came_from: list[np.ndarray] = []
    for _ in range(min(MOST_WIDTHS, len(width_S))):
        ways = cost[:-1, None] + step
        came_from.append(ways.argmin(axis=0))
        cost = np.concatenate([[np.inf], ways.min(axis=0)])
    chosen: list[int] = []
    end = len(width_S)
    for origins in reversed(came_from):
        chosen.append(int(width_S[end - 1]))
        end = int(origins[end - 1])
    return tuple(reversed(chosen))


class Padded(NamedTuple):
    """A micro-batch as a rectangle, filled up on the right."""

    ids_BW: np.ndarray
    """int32 [B, W], 0 beyond the end of a row."""
    lengths_B: np.ndarray
    """int32 [B]."""
    targets_BW: np.ndarray
    """int32 [B, W], IGNORE beyond the end of a row."""


def padded(rows: Rows, indices: Sequence[int], *, widths: Sequence[int] = ()) -> Padded:
    """These rows side by side; the width is the longest, or the next of `widths`.

    >>> rows = Rows.from_pairs([([1, 2, 3], [2, -100, 4]), ([5], [6])])
    >>> ids, lengths, targets = padded(rows, [0, 1], widths=[4])
    >>> ids.tolist(), lengths.tolist()
    ([[1, 2, 3, 0], [5, 0, 0, 0]], [3, 1])
    >>> targets.tolist()
    [[2, -100, 4, -100], [6, -100, -100, -100]]
    """
    lengths_B = rows.lengths_R[list(indices)].astype(np.int32)
    shape = len(indices), int(widths_of(lengths_B.astype(np.int64), widths).max(initial=0))
    ids_BW, targets_BW = np.zeros(shape, np.int32), np.full(shape, IGNORE, np.int32)
    for b, index in enumerate(indices):
        ids, targets = rows.row(index)
        ids_BW[b, : len(ids)], targets_BW[b, : len(ids)] = ids, targets
    return Padded(ids_BW, lengths_B, targets_BW)
