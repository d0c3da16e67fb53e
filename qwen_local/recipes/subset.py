"""Draws that depend on what a thing is and on the seed, never on where it stands.

A thing's draw is a hash of it. Those with the smallest draws are a fair sample of any size, the
same one however the file is sorted, and a larger sample contains every smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from qwen_local.datasets.split import mixed


def draw(seed: int, *parts: str) -> int:
    """A number in [0, 2^64) for these parts; which strings they are counts, and their order.

    >>> draw(0, "a", "b") == draw(0, "a", "b"), draw(0, "a", "b") == draw(0, "ab", "")
    (True, False)
    """
    text = f"{seed} {' '.join(str(len(part)) for part in parts)} {''.join(parts)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def draws(seed: int, numbers: np.ndarray) -> np.ndarray:
    """`draw` for whole columns; different numbers have different draws.

    Args:
        seed: moves the numbers first.
        numbers: of any integer type, shape [N].

    Returns:
        uint64 [N].
    """
    return mixed(numbers, draw(seed, "splitmix64"))


def smallest(draws_N: np.ndarray, size: int) -> np.ndarray:
    """Where the `size` smallest draws stand (all of them where there are fewer), in any order.

    >>> sorted(smallest(np.array([30, 10, 40, 20], np.uint64), 2).tolist())
    [1, 3]
    """
    size = min(size, len(draws_N))
    return np.argpartition(draws_N, size - 1)[:size] if size else np.zeros(0, np.int64)


def held_out(rows: Mapping[str, int], *, fraction: float, seed: int) -> set[str]:
    """The questions to be kept for evaluation, each with all of its rows.

    Args:
        rows: of each question.
        fraction: of all rows, 0 <= fraction < 1; met to the row unless questions repeat.
        seed: another seed chooses other questions.

    >>> sorted(held_out({"a": 1, "b": 1, "c": 1, "d": 1}, fraction=0.5, seed=0))
    ['a', 'd']
    """
    total = sum(rows.values())
    left = min(round(fraction * total), total - 1)  # something is left to train on
    chosen = set()
    for question in sorted(rows, key=lambda question: draw(seed, "held out", question)):
        if rows[question] <= left:
            chosen.add(question)
            left -= rows[question]
    return chosen
