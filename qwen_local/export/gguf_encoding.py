"""Encodings of GGUF tensors, and bounds of their rounding errors.

`q8_0` splits a row into blocks of 32 values. Each block has a scale d = max|x| / 127, stored as
f16, and 32 integers x / d, stored as bytes.
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
"""Requested encoding of a model's matrices."""
Encoding = Literal["f32", "f16", "bf16", "q8_0"]
"""Encoding of one tensor."""

TYPES: Mapping[Encoding, Type] = {
    "f32": Type.F32,
    "f16": Type.F16,
    "bf16": Type.BF16,
    "q8_0": Type.Q8_0,
}
BLOCK = 32
"""Number of values that share a scale in `q8_0`."""
LARGEST_CODE = 127
"""The largest integer of `q8_0`."""
LARGEST_VALUE: Mapping[Encoding, float] = {
    "f32": float(np.finfo(np.float32).max),
    "f16": 65504.0,
    "bf16": (2 - 2.0**-7) * 2.0**127,
    "q8_0": LARGEST_CODE * 65504.0,
}
"""Larger values would become infinite."""
ROUNDED: Mapping[Encoding, Rounded] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
ARITHMETIC_ERROR = 2.0**-15
"""Float32 error of encoding and decoding `q8_0`, relative to its step."""


def encoding_of(shape: Sequence[int], outtype: Outtype) -> Encoding:
    """Return the encoding of a tensor with this shape.

    llama.cpp computes with vectors (norms, biases) in float32. `q8_0` needs rows of whole blocks.

    >>> encoding_of((64, 96), "q8_0"), encoding_of((64, 100), "q8_0"), encoding_of((64,), "q8_0")
    ('q8_0', 'f16', 'f32')
    """
    if len(shape) < 2:
        return "f32"
    return "f16" if outtype == "q8_0" and shape[-1] % BLOCK else outtype


def encoded_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """Return the size of a tensor in a file."""
    block, size = gguf.GGML_QUANT_SIZES[TYPES[encoding]]
    return math.prod(shape) // block * size


def encode(array: np.ndarray, encoding: Encoding, name: str) -> np.ndarray:
    """Encode an array as floats or, for `q8_0`, bytes.

    Args:
        array: float32.
        encoding: see `encoding_of`.
        name: of the tensor in messages.

    Raises:
        ExportError: a value is not finite, or too large for the encoding.
    """
    peak = max(float(array.max()), -float(array.min()))  # no copy, and NaN stays NaN
    if not math.isfinite(peak):
        raise ExportError(f"{name} holds values that are not finite")
    if peak > LARGEST_VALUE[encoding]:
        raise ExportError(
            f"{name} holds {peak:.6g}; the largest {encoding} is {LARGEST_VALUE[encoding]:.6g}"
            "\n\nhint: pass `outtype=bf16`"
        )
    with np.errstate(all="ignore"):  # blocks of tiny values: scale 0, any codes
        encoded: np.ndarray = gguf.quantize(array, TYPES[encoding])
    return encoded


def rounding_bound(array: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Return the largest |error| that encoding may add to each value.

    Args:
        array: float32; matrices of `q8_0` with whole rows.
        encoding: see `encoding_of`.

    Returns:
        float32, of the same shape.
    """
    if encoding != "q8_0":
        return rounding(array, ROUNDED[encoding])
    scales = np.abs(array).reshape(-1, BLOCK).max(axis=1) / np.float32(LARGEST_CODE)
    scale_errors = rounding(scales, "float16")
    bounds = scales * np.float32(0.5 + ARITHMETIC_ERROR) + LARGEST_CODE * scale_errors
    return np.repeat(bounds, BLOCK).reshape(array.shape)
