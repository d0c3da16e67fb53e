"""Which rows are kept for evaluation where no evaluation source is named."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

FEWEST_ROWS = 20
"""With fewer rows there is no split: each is worth more in training."""


def evaluation_rows(digests: Sequence[bytes], *, fraction: float, seed: int) -> list[bool]:
    """Chooses rows by their content alone.

    A row's side depends neither on the order of the rows nor on the other rows, and equal rows
    fall on the same side. The share is therefore met on average only; but where a split is made,
    neither side is empty.

    Args:
        digests: the hash of each row's content.
        fraction: share of the different contents to be chosen, 0 <= fraction < 1.
        seed: another seed chooses other rows.

    Returns:
        For each row, whether it is kept for evaluation. None is where no split is made:
        `fraction` is 0, there are fewer than `FEWEST_ROWS` rows, or all of them are equal.

    >>> rows = [bytes([r]) for r in range(100)]
    >>> chosen = evaluation_rows(rows, fraction=0.05, seed=0)
    >>> sum(chosen)
    5
    >>> evaluation_rows(rows[::-1], fraction=0.05, seed=0)[::-1] == chosen
    True
    """
    draws = [_draw(digest, seed) for digest in digests]
    if fraction == 0 or len(draws) < FEWEST_ROWS or len(set(draws)) == 1:
        return [False] * len(draws)
    lowest, highest = min(draws), max(draws)
    if fraction <= lowest:
        return [draw == lowest for draw in draws]
    if fraction > highest:
        return [draw < highest for draw in draws]
    return [draw < fraction for draw in draws]


def _draw(digest: bytes, seed: int) -> float:
    """A number in [0, 1) that looks random and belongs to this content and seed."""
    key = hashlib.sha256(f"split {seed} ".encode() + digest).digest()
    return int.from_bytes(key[:6]) / 2**48
