"""A model's files, tensor by tensor, for an export. See `qwen_local.backends.weights.Weights`."""

from __future__ import annotations

from qwen_local.backends.mlx import before_import  # noqa: F401  # first: settings of MLX's library

# isort: split
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from qwen_local.backends.mlx.constants import GROUP
from qwen_local.backends.mlx.quantized import dequantized, from_codes
from qwen_local.backends.weights import QUANTIZED_BITS
from qwen_local.files import read_rows, readable_by_all
from qwen_local.job.schema import Quantization
from qwen_local.models.architecture import EMBEDDING, NORM, Stored


class MlxWeights:
    """A folder's `model*.safetensors`."""

    def __init__(self, folder: Path, device: str, stored: Stored | None) -> None:
        mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
        self._stored = stored
        files = sorted(folder.glob("model*.safetensors"))
        self._file = {str(name): file for file in files for name in mx.load(str(file))}

    def read(
        self, name: str, quantization: Quantization = "none", rows: slice | None = None
    ) -> np.ndarray:
        """See `Weights.read`."""
        path = name.removesuffix(".weight")
        if f"{path}.scales" not in self._file and quantization == "none":
            return read_rows(self._file[name], name, slice(None) if rows is None else rows)
        raw = self._array(name, rows)
        if f"{path}.scales" in self._file:
            assert self._stored is not None
            scales, biases = (self._array(f"{path}.{part}", rows) for part in ("scales", "biases"))
            bits, group = self._stored.bits, self._stored.group
            return np.array(from_codes(raw, scales, biases, bits=bits, group=group))
        return np.array(dequantized(raw, quantization))

    def cut(self, path: Path, block: int) -> None:
        """See `Weights.cut`."""
        prefix = f"model.layers.{block}."
        parts = {
            f"model.layers.0.{name.removeprefix(prefix)}": self._array(name)
            for name in self._file
            if name.startswith(prefix)
        }
        norm = parts["model.layers.0.input_layernorm.weight"]
        ends = {EMBEDDING: mx.ones_like(norm)[None], NORM: mx.ones_like(norm)}
        _save(path, parts | ends)

    def encode(
        self, name: str, array: np.ndarray, *, dtype: str, quantization: Quantization
    ) -> dict[str, Any]:
        """See `Weights.encode`."""
        rounded = mx.array(array).astype(getattr(mx, dtype))
        if quantization == "none":
            made = {name: rounded}
        else:
            bits = QUANTIZED_BITS[quantization]
            parts = mx.quantize(rounded, group_size=GROUP, bits=bits)
            stem = name.removesuffix("weight")
            made = dict(zip((name, f"{stem}scales", f"{stem}biases"), parts, strict=True))
        mx.eval(made)  # or each would keep the float32 that it is made of
        return made

    def write(self, path: Path, parts: Mapping[str, Any]) -> None:
        """See `Weights.write`."""
        _save(path, dict(parts))
        readable_by_all(path)

    def config(self, quantization: Quantization, dtype: str) -> dict[str, Any]:
        """See `Weights.config`."""
        settings = {"group_size": GROUP, "bits": QUANTIZED_BITS[quantization]}
        return {"quantization": settings, "quantization_config": settings}

    def _array(self, name: str, rows: slice | None = None) -> mx.array:
        arrays = mx.load(str(self._file[name]))  # lazy: one alone is read
        assert isinstance(arrays, dict)
        return arrays[name] if rows is None else arrays[name][rows]


def _save(path: Path, arrays: dict[str, mx.array]) -> None:
    try:
        mx.save_safetensors(str(path), arrays, metadata={"format": "mlx"})
    except RuntimeError as error:  # of a disk that is full, too
        raise OSError(str(error)) from error
