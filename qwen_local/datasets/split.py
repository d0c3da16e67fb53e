"""Choice of evaluation rows, and repetition of training rows. Decided by content alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

FEWEST_ROWS = 20
"""Fewest rows that are split: below, each row is worth more in training."""


def evaluation_rows(content_R: np.ndarray, *, fraction: float, seed: int) -> np.ndarray:
    """Choose evaluation rows by their content alone.

    The choice of a row depends neither on the order of the rows nor on the other rows, and equal
    rows are chosen together. The share is therefore met on average only; but if a split is made,
    neither set is empty.

    Args:
        content_R: uint64 [R], the hash of each row's content.
        fraction: share of the different contents to choose, 0 <= fraction < 1.
        seed: another seed chooses other rows.

    Returns:
        bool [R]: True for evaluation rows. All False if no split is made: `fraction` is 0, there
        are fewer than `FEWEST_ROWS` rows, or all of them are equal.

    >>> rows = np.arange(100, dtype=np.uint64)
    >>> chosen = evaluation_rows(rows, fraction=0.05, seed=0)
    >>> int(chosen.sum())
    5
    >>> bool((evaluation_rows(rows[::-1], fraction=0.05, seed=0)[::-1] == chosen).all())
    True
    """
    draws = _draws(content_R, "split", seed)
    if fraction == 0 or len(draws) < FEWEST_ROWS or draws.min() == draws.max():
        return np.zeros(len(draws), bool)
    if fraction <= draws.min():
        return np.asarray(draws == draws.min())
    if fraction > draws.max():
        return np.asarray(draws < draws.max())
    return np.asarray(draws < fraction)


def repeated(content_R: np.ndarray, *, weight: float, seed: int) -> np.ndarray:
    """Repeat rows as often as their source counts in an epoch.

    Args:
        content_R: uint64 [R], the hash of each row's content.
        weight: 2 takes every row twice, 0.5 half of the rows, 1.5 all of them and half again.
        seed: seed for the choice of that half.

    Returns:
        int64: indices into the rows, in their order, copy after copy; at least one.

    >>> rows = np.arange(4, dtype=np.uint64)
    >>> repeated(rows, weight=2, seed=0).tolist(), len(repeated(rows, weight=1.5, seed=0))
    ([0, 1, 2, 3, 0, 1, 2, 3], 6)
    """
    whole = np.arange(len(content_R))
    full, part = divmod(weight, 1)
    draws = _draws(content_R, "weight", seed)
    count = round(part * len(whole))
    if not full and len(whole):
        count = max(1, count)  # a source is never left out entirely
    some = np.sort(np.argsort(draws, kind="stable")[:count])
    return np.concatenate([np.tile(whole, int(full)), some])


def evaluation_parts(
    parts: Sequence[np.ndarray], *, fraction: float, seed: int
) -> list[np.ndarray]:
    """Apply `evaluation_rows` to several sources together.

    Args:
        parts: content hashes of each source, uint64 [R].
        fraction: see `evaluation_rows`.
        seed: see `evaluation_rows`.

    Returns:
        bool [R] for each source.
    """
    chosen = evaluation_rows(np.concatenate(parts), fraction=fraction, seed=seed)
    return np.split(chosen, np.cumsum([len(part) for part in parts])[:-1])


def mixed(numbers: np.ndarray, start: int) -> np.ndarray:
    """Hash integers one to one, by the mixing steps of SplitMix64 (Steele, Lea and Flood, 2014).

    Args:
        numbers: integers of any type, shape [N].
        start: added first, modulo 2^64.

    Returns:
        uint64 [N].
    """
    z = numbers.astype(np.uint64)  # a copy, changed in place: columns are long
    z += np.uint64(start)  # wraps around, as it should
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _draws(content_R: np.ndarray, purpose: str, seed: int) -> np.ndarray:
    """Draw a number in [0, 1) for each content, by purpose and seed."""
    start = int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:8])
    return (mixed(content_R, start) >> np.uint64(11)).astype(np.float64) / 2.0**53
