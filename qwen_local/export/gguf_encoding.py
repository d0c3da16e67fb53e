"""How GGUF holds numbers, and how far from the truth that may be.

`q8_0` cuts a row into blocks of 32 numbers. Each block has a scale d = max|x| / 127, held as f16,
and 32 whole numbers x / d, held as bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from qwen_local.export.merge import ExportError
from qwen_local.export.rounding import Rounded, rounding

Outtype = Literal["f16", "bf16", "q8_0"]
"""What the matrices of a model are to be held in."""
Encoding = Literal["f32", "f16", "bf16", "q8_0"]
"""What one tensor is held in."""

TYPES: Mapping[Encoding, Type] = {
    "f32": Type.F32,
    "f16": Type.F16,
    "bf16": Type.BF16,
    "q8_0": Type.Q8_0,
}
BLOCK = 32
"""Numbers of a row that share a scale in `q8_0`."""
CODES = 127
"""The largest code of `q8_0`."""
LARGEST: Mapping[Encoding, float] = {
    "f32": float(np.finfo(np.float32).max),
    "f16": 65504.0,
    "bf16": (2 - 2.0**-7) * 2.0**127,
    "q8_0": CODES * 65504.0,
}
"""Beyond this a number would become infinite."""
ROUNDED: Mapping[Encoding, Rounded] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
ARITHMETIC = 2.0**-15
"""Of a step of `q8_0`: what float32 errs by when it finds codes, and the numbers from them."""


def encoding_of(shape: Sequence[int], outtype: Outtype) -> Encoding:
    """What a tensor of this shape is held in.

    llama.cpp computes with vectors (norms, biases) in float32. Rows that are no whole blocks cannot
    be `q8_0`.

    >>> encoding_of((64, 96), "q8_0"), encoding_of((64, 100), "q8_0"), encoding_of((64,), "q8_0")
    ('q8_0', 'f16', 'f32')
    """
    if len(shape) < 2:
        return "f32"
    return "f16" if outtype == "q8_0" and shape[-1] % BLOCK else outtype


def encoded_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """The size of a tensor in a file."""
    block, size = gguf.GGML_QUANT_SIZES[TYPES[encoding]]
    return math.prod(shape) // block * size


def encode(array: np.ndarray, encoding: Encoding, name: str) -> np.ndarray:
    """The array as a file holds it: numbers, or bytes.

    Args:
        array: float32.
        encoding: see `encoding_of`.
        name: how a message calls it.

    Raises:
        ExportError: it holds what is not finite, or would not be so in this encoding.
    """
    peak = max(float(array.max()), -float(array.min()))  # no copy, and NaN stays NaN
    if not math.isfinite(peak):
        raise ExportError(f"{name} holds numbers that are not finite")
    if peak > LARGEST[encoding]:
        raise ExportError(
            f"{name} holds {peak:.6g}, and {encoding} ends at {LARGEST[encoding]:.6g}"
            "\n\nhint: write it as bf16"
        )
    with np.errstate(all="ignore"):  # a block of tiny numbers has a scale of 0 and any codes
        encoded: np.ndarray = gguf.quantize(array, TYPES[encoding])
    return encoded


def rounding_bound(array: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The largest |error| that encoding may make of each number.

    Args:
        array: float32; matrices of `q8_0` with whole rows.
        encoding: see `encoding_of`.

    Returns:
        float32, of the same shape.
    """
    if encoding != "q8_0":
        return rounding(array, ROUNDED[encoding])
    scales = np.abs(array).reshape(-1, BLOCK).max(axis=1) / np.float32(CODES)
    of_scales = rounding(scales, "float16")
    bounds = scales * np.float32(0.5 + ARITHMETIC) + CODES * of_scales
    return np.repeat(bounds, BLOCK).reshape(array.shape)
