"""Bounds of rounding errors, for comparing a file with the computed values."""

from __future__ import annotations

from typing import Literal

import numpy as np

Rounded = Literal["float32", "bfloat16", "float16"]
STEPS: dict[Rounded, tuple[int, float]] = {"bfloat16": (8, 2.0**-134), "float16": (11, 2.0**-25)}
"""(significant bits, half of the smallest subnormal)."""


def rounding(array: np.ndarray, dtype: Rounded) -> np.ndarray:
    """Return the largest |error| of each value when float32 is rounded to a dtype.

    Args:
        array: float32.
        dtype: target; the bound is 0 for float32.

    Returns:
        float32, of the same shape.
    """
    if dtype == "float32":
        return np.zeros_like(array)
    bits, half = STEPS[dtype]
    bound: np.ndarray = np.abs(array) * np.float32(2.0**-bits) + np.float32(half)
    return bound
