"""The contract of a model's weight files: what an export reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qwen_local.job.schema import Quantization

QUANTIZED_BITS: Mapping[Quantization, int] = {"4bit": 4, "8bit": 8}
"""Bits of a weight."""


class Weights(Protocol):
    """The `model*.safetensors` of a folder, one tensor at a time.

    Each engine has its own implementation, because only its library knows its quantized format.
    """

    def read(
        self, name: str, quantization: Quantization = "none", rows: slice | None = None
    ) -> np.ndarray:
        """Read a tensor with the values that an engine trains on, float32.

        Args:
            name: as in `Architecture.weight_shapes`.
            quantization: quantize and dequantize first, as the engine does while loading; `none`
                for tensors that stay floats, and for files that are quantized already, which are
                dequantized.
            rows: read only these rows of a matrix that is not quantized while loading.
        """
        ...

    def cut(self, path: Path, block: int) -> None:
        """Write one block, in the format of the files, as a whole model: see `export/blocks.py`.

        Args:
            path: of the safetensors file to write.
            block: its number.
        """
        ...

    def encode(
        self, name: str, array: np.ndarray, *, dtype: str, quantization: Quantization
    ) -> dict[str, Any]:
        """Return the arrays that a file stores for a float32 array: the library's own, by name.

        Args:
            name: of the array.
            array: float32.
            dtype: rounded to this first.
            quantization: then quantized to this.
        """
        ...

    def write(self, path: Path, parts: Mapping[str, Any]) -> None:
        """Write arrays from `encode` as a safetensors file."""
        ...

    def config(self, quantization: Quantization, dtype: str) -> dict[str, Any]:
        """Return the entries of config.json that describe weights quantized by `encode`."""
        ...
