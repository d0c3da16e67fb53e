"""The files of a model, tensor by tensor, for an export. See `qwen_local.backends.base.Weights`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from qwen_local.backends.base import QUANTISED_BITS
from qwen_local.backends.mlx.quantised import dequantised, from_codes
from qwen_local.backends.quantisation import MLX_GROUP
from qwen_local.files import readable_by_all
from qwen_local.job import Quantization
from qwen_local.models.architecture import Stored


class MlxWeights:
    """A folder's `model*.safetensors`."""

    def __init__(self, folder: Path, device: str, stored: Stored | None) -> None:
        mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
        self._stored = stored
        files = sorted(folder.glob("model*.safetensors"))
        self._file = {name: file for file in files for name in mx.load(str(file))}

    def read(self, name: str, quantization: Quantization) -> np.ndarray:
        """See `Weights.read`."""
        raw, path = self._array(name), name.removesuffix(".weight")
        if f"{path}.scales" in self._file:
            assert self._stored is not None
            scales, biases = self._array(f"{path}.scales"), self._array(f"{path}.biases")
            bits, group = self._stored.bits, self._stored.group
            return np.array(from_codes(raw, scales, biases, bits=bits, group=group))
        if quantization != "none":
            raw = dequantised(raw, quantization)
        return np.array(raw.astype(mx.float32))

    def write(
        self,
        path: Path,
        arrays: Mapping[str, np.ndarray],
        *,
        dtype: str,
        quantised: Collection[str],
        quantization: Quantization,
    ) -> dict[str, int]:
        """See `Weights.write`."""
        made: dict[str, mx.array] = {}
        for name, values in arrays.items():
            array = mx.array(values).astype(getattr(mx, dtype))
            if name in quantised:
                bits = QUANTISED_BITS[quantization]
                parts = mx.quantize(array, group_size=MLX_GROUP, bits=bits)
                stem = name.removesuffix("weight")
                names = (name, f"{stem}scales", f"{stem}biases")
                made |= dict(zip(names, parts, strict=True))
            else:
                made[name] = array
        mx.save_safetensors(str(path), made, metadata={"format": "mlx"})
        readable_by_all(path)
        return {name: array.nbytes for name, array in made.items()}

    def config(self, quantization: Quantization, dtype: str) -> dict[str, Any]:
        """See `Weights.config`."""
        settings = {"group_size": MLX_GROUP, "bits": QUANTISED_BITS[quantization]}
        return {"quantization": settings, "quantization_config": settings}

    def _array(self, name: str) -> mx.array:
        arrays = mx.load(str(self._file[name]))  # lazy: one alone is read
        assert isinstance(arrays, dict)
        return arrays[name]
