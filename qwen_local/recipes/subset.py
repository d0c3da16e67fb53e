"""Sampling by hash: the sample depends on the content and the seed, not on the order of a file.

The items with the smallest hashes are a random sample of any size. A larger sample contains every
smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from qwen_local.datasets.split import mixed


def draw(seed: int, *parts: str) -> int:
    """Hash these strings, in this order, to a number in [0, 2^64).

    >>> draw(0, "a", "b") == draw(0, "a", "b"), draw(0, "a", "b") == draw(0, "ab", "")
    (True, False)
    """
    text = f"{seed} {' '.join(str(len(part)) for part in parts)} {''.join(parts)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def draws(seed: int, numbers: np.ndarray) -> np.ndarray:
    """Hash a column of numbers; different numbers have different hashes.

    Args:
        seed: seed of the hash.
        numbers: any integer type, shape [N].

    Returns:
        uint64 [N].
    """
    return mixed(numbers, draw(seed, "splitmix64"))


def smallest(draws_N: np.ndarray, size: int) -> np.ndarray:
    """Return the indices of the `size` smallest hashes (or of all), in any order.

    >>> sorted(smallest(np.array([30, 10, 40, 20], np.uint64), 2).tolist())
    [1, 3]
    """
    size = min(size, len(draws_N))
    return np.argpartition(draws_N, size - 1)[:size] if size else np.zeros(0, np.int64)


def held_out(rows: Mapping[str, int], *, fraction: float, seed: int) -> set[str]:
    """Return the questions to hold out for evaluation, each with all of its rows.

    Args:
        rows: number of rows of each question.
        fraction: fraction of all rows, 0 <= fraction < 1; exact unless questions repeat.
        seed: seed of the hash.

    >>> sorted(held_out({"a": 1, "b": 1, "c": 1, "d": 1}, fraction=0.5, seed=0))
    ['a', 'd']
    """
    total = sum(rows.values())
    left = min(round(fraction * total), total - 1)  # leave at least one row for training
    chosen = set()
    for question in sorted(rows, key=lambda question: draw(seed, "held out", question)):
        if rows[question] <= left:
            chosen.add(question)
            left -= rows[question]
    return chosen
