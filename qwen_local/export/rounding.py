"""How far rounding may take a number: what a file holds is compared with what was computed."""

from __future__ import annotations

from typing import Literal

import numpy as np

Rounded = Literal["float32", "bfloat16", "float16"]
STEPS: dict[Rounded, tuple[int, float]] = {"bfloat16": (8, 2.0**-134), "float16": (11, 2.0**-25)}
"""(significant bits, a half of the smallest step)."""


def rounding(array: np.ndarray, dtype: Rounded) -> np.ndarray:
    """The largest |error| that rounding float32 to a dtype makes of each number.

    Args:
        array: float32.
        dtype: to round to; float32 itself rounds nothing.

    Returns:
        float32, of the same shape.
    """
    if dtype == "float32":
        return np.zeros_like(array)
    bits, half = STEPS[dtype]
    bound: np.ndarray = np.abs(array) * np.float32(2.0**-bits) + np.float32(half)
    return bound
