"""The plan of micro-batches: which rows an engine computes together, and in which order.

Pure, and the same for both engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def epoch_order(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order of n rows in an epoch: int64 [n], from seed and epoch alone.

    >>> epoch_order(5, seed=0, epoch=1).tolist()
    [1, 4, 3, 0, 2]
    """
    return np.random.default_rng([seed, epoch]).permutation(n)


MOST = 8
"""Most micro-batches that a step is cut into to save padding, if memory would hold it in fewer."""
ONE_MORE = 64
"""Cost of one more micro-batch, in positions; saving less padding than that is not worth it."""
LARGE = 256
"""Above this number of rows, groups are filled: sorted rows then have hardly any padding."""
SIZES = tuple(sorted(m * 2**n for n in range(20) for m in (1, 3) if m * 2**n > 2 or m == 1))
"""Allowed numbers of rows in a group where shapes must be few: 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""


def rounded_up(count: int, *, smallest: int, an_octave: int) -> int:
    """Round up to one of few sizes: `an_octave` of them between a power of two and the next.

    >>> [rounded_up(n, smallest=32, an_octave=4) for n in (3, 32, 33, 41, 65, 100)]
    [32, 32, 40, 48, 80, 112]
    """
    if count <= smallest:
        return smallest
    step = max(1, (1 << ((count - 1).bit_length() - 1)) // an_octave)
    return -(-count // step) * step


@dataclass(frozen=True, slots=True)
class Layout:
    """The arrangement of the rows of a micro-batch."""

    widths: tuple[int, ...] = ()
    """Allowed widths of a rectangle, rising; its rows are then one of `SIZES`. Empty allows any
    width and any number of rows. A row longer than the widest has a width of its own."""
    packed: bool = False
    """True: rows one behind the other without padding, instead of side by side in a rectangle."""

    def positions(self, lengths_R: np.ndarray) -> int:
        """Count the positions of a micro-batch of these lengths (int64 [R], at least one)."""
        if self.packed:
            return int(lengths_R.sum())
        return len(lengths_R) * int(widths_of(lengths_R, self.widths).max())


PADDED, PACKED = Layout(), Layout(packed=True)


def micro_batches(
    lengths: Sequence[int], *, budget: int, layout: Layout = PADDED, most: int = MOST
) -> list[list[int]]:
    """Group the rows of one optimizer step so that each group fits into memory.

    Sorted by length, the rows are cut where that leaves the least padding, into no more groups than
    `most` or than memory requires. The longest come first, so that a budget that is too large
    fails at once; rows of one length keep their order. Packed rows have no padding, and are cut
    where the budget is full.

    Args:
        lengths: tokens of each row, at least one.
        budget: positions of a group, padding included. A row that is larger by itself makes a group
            of its own.
        layout: arrangement of a group.
        most: groups at most, if memory would hold the rows in fewer.

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
    """Return the smallest width that holds each row, or its own length: int64 [R].

    >>> widths_of(np.array([3, 16, 17, 99]), [16, 32]).tolist()
    [16, 16, 32, 99]
    """
    if not len(widths):
        return lengths_R
    at = np.searchsorted(widths, lengths_R)
    known = np.asarray(widths, np.int64)[np.minimum(at, len(widths) - 1)]
    return np.where(at < len(widths), known, lengths_R)


def _full(length_R: np.ndarray, budget: int) -> list[int]:
    """Return the rows of each group if every group is packed full."""
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
    """Return the rows of each group if every rectangle is filled."""
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
    """Return the rows of each group for the least total cost: padded positions, and `ONE_MORE` for
    each group.

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
"""Different lengths that the choice of widths distinguishes."""


def choose_widths(lengths_R: np.ndarray) -> tuple[int, ...]:
    """Choose up to `MOST_WIDTHS` widths that pad rows of these lengths the least.

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
