"""A model's files, tensor by tensor, for an export. See `qwen_local.backends.weights.Weights`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qwen_local.backends.cuda.quantized import INT8_LEVELS, NF4, bitsandbytes_config, dequantized
from qwen_local.backends.weights import QUANTIZED_BITS
from qwen_local.files import readable_by_all
from qwen_local.job.schema import Quantization
from qwen_local.models.architecture import EMBEDDING, NORM


class TorchWeights:
    """A folder's `model*.safetensors`."""

    def __init__(self, folder: Path, device: str) -> None:
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        self._file: dict[str, Path] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._file |= dict.fromkeys(file.keys(), path)

    def read(
        self, name: str, quantization: Quantization = "none", rows: slice | None = None
    ) -> np.ndarray:
        """See `Weights.read`."""
        if rows is not None:
            with safe_open(self._file[name], framework="pt") as file:
                return _numpy(file.get_slice(name)[rows])
        raw, path = self._tensor(name), name.removesuffix(".weight")
        if f"{name}.absmax" in self._file:
            parts = {n: self._tensor(n) for n in self._file if n.startswith(f"{name}.")}
            from bitsandbytes import functional

            state = functional.QuantState.from_dict(parts, device=self._device)
            state.dtype = torch.float32
            return _numpy(functional.dequantize_4bit(raw, state))
        if f"{path}.SCB" in self._file:
            return _numpy(raw.float() * (self._tensor(f"{path}.SCB")[:, None] / INT8_LEVELS))
        return _numpy(raw if quantization == "none" else dequantized(raw, quantization))

    def cut(self, path: Path, block: int) -> None:
        """See `Weights.cut`."""
        prefix = f"model.layers.{block}."
        parts = {
            f"model.layers.0.{name.removeprefix(prefix)}": self._tensor(name).cpu()
            for name in self._file
            if name.startswith(prefix)
        }
        norm = parts["model.layers.0.input_layernorm.weight"]
        ends = {EMBEDDING: torch.ones_like(norm)[None], NORM: torch.ones_like(norm)}
        save_file(parts | ends, path, metadata={"format": "pt"})

    def encode(
        self, name: str, array: np.ndarray, *, dtype: str, quantization: Quantization
    ) -> dict[str, Any]:
        """See `Weights.encode`."""
        tensor = torch.from_numpy(array).to(getattr(torch, dtype))
        if quantization != "none":
            return self._quantize(name, tensor, quantization)
        return {name: tensor}

    def write(self, path: Path, parts: Mapping[str, Any]) -> None:
        """See `Weights.write`."""
        save_file(dict(parts), path, metadata={"format": "pt"})
        readable_by_all(path)

    def config(self, quantization: Quantization, dtype: str) -> dict[str, Any]:
        """See `Weights.config`."""
        settings = bitsandbytes_config(QUANTIZED_BITS[quantization], getattr(torch, dtype))
        return {"quantization_config": settings.to_dict()}

    def _tensor(self, name: str) -> Tensor:
        # Opened for each: what was read of a mapped file would stay in memory with it.
        with safe_open(self._file[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor.to(self._device)

    def _quantize(self, name: str, tensor: Tensor, quantization: Quantization) -> dict[str, Tensor]:
        """Return the tensors that bitsandbytes stores (its `Params4bit` and `Int8Params`)."""
        from bitsandbytes import functional

        path = name.removesuffix(".weight")
        tensor = tensor.to(self._device)
        if quantization == "4bit":
            codes, state = functional.quantize_4bit(tensor, **NF4)
            parts = state.as_dict(packed=True)
            made = {name: codes} | {f"{name}.{part}": value for part, value in parts.items()}
        else:
            codes, row_scales, _ = functional.int8_vectorwise_quant(tensor.to(torch.float16))
            row_major = torch.tensor(0, dtype=torch.uint8)
            made = {name: codes, f"{path}.SCB": row_scales, f"{path}.weight_format": row_major}
        return {key: value.cpu() for key, value in made.items()}


def _numpy(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.to("cpu", torch.float32).numpy()
    return array
