"""Comparison of loss curves."""

from __future__ import annotations

from collections.abc import Sequence


def largest_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """Largest |a - b| / max(|b|, 0.1) over all steps: the measure of promise 1.

    >>> round(largest_difference([2.0, 0.02], [2.0, 0.01]), 6)
    0.1
    """
    return max(abs(x - y) / max(abs(y), 0.1) for x, y in zip(a, b, strict=True))
