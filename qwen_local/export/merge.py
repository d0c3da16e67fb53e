"""Merging an adapter into its base model, one tensor at a time.

W' = W + scale * (B A) in float32, rounded once when it is written. A DoRA's rows are scaled to its
magnitudes before that. W is the base model as the training engine held it, so after a run on a
quantized base it is the dequantized weight. Merged into the original weights instead, a QLoRA
adapter loses much of its effect, as it does when the sum is quantized again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qwen_local.adapters.lora import Adapter, lora_name
from qwen_local.backends.weights import Weights
from qwen_local.errors import QwenLocalError
from qwen_local.files import write_json
from qwen_local.job.schema import Quantization
from qwen_local.models.architecture import Architecture, Place

VERIFY_CHUNK = 1 << 24
"""Number of values that are compared at a time."""
ReadTensor = Callable[[str, slice | None], np.ndarray]
"""(name of a tensor, some of its rows or None for all) -> float32."""
Tolerance = Callable[[np.ndarray], np.ndarray]

SHARD_BYTES = 500_000_000
"""Largest file, unless a single tensor is larger. A file is in memory until it is written."""


class ExportError(QwenLocalError):
    """The exported model differs from the trained one; nothing was left at the output path."""


def merged_tensors(
    architecture: Architecture, adapter: Adapter, weights: Weights, quantization: Quantization
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor of the merged model, float32, in the order of the architecture.

    Tensors beyond the architecture (the head of a tied model) are left out.

    Args:
        architecture: of the base model.
        adapter: fits it.
        weights: files of the base model.
        quantization: of the linear layers when the adapter was trained.
    """
    linear = architecture.linear_weights()
    for name in architecture.weight_shapes():
        yield name, merged_tensor(name, linear.get(name), adapter, weights, quantization)


def merged_tensor(
    name: str,
    place: Place | None,
    adapter: Adapter,
    weights: Weights,
    quantization: Quantization,
) -> np.ndarray:
    """Return one tensor of the merged model; `place` is None outside the linear layers."""
    if place is None:
        return weights.read(name)
    return merged(weights.read(name, quantization), adapter, *place)


def merged(weight: np.ndarray, adapter: Adapter, block: int, path: str) -> np.ndarray:
    """Return the weight of a linear layer with the adapter merged into it.

    Args:
        weight: float32 [out, in].
        adapter: may have no matrices for this layer.
        block: number of the block.
        path: of the layer in the block.
    """
    if (pair := adapter.matrices(block, path)) is None:
        return weight
    a, b = pair
    with np.errstate(all="ignore"):  # a false alarm of Accelerate on a Mac, numpy #28687
        summed: np.ndarray = weight + np.float32(adapter.lora.scale) * (b @ a)
    magnitude = adapter.arrays.get(lora_name(block, path, "m"))
    if magnitude is None:
        return summed
    norm = np.sqrt(np.einsum("oi,oi->o", summed, summed))
    scaled: np.ndarray = summed * (magnitude / norm)[:, None]
    return scaled


def verify(
    tensors: Iterable[tuple[str, np.ndarray]], written: ReadTensor, tolerance: Tolerance
) -> None:
    """Check that files hold exactly these tensors, rounded once.

    Args:
        tensors: float32, by name.
        written: reads a tensor from the files.
        tolerance: returns the largest rounding error of each value.

    Raises:
        ExportError: a tensor differs.
    """
    for name, array in tensors:
        chunks: list[slice | None] = [None]
        if array.ndim > 1:
            step = max(1, VERIFY_CHUNK // array.shape[1])
            chunks = [slice(start, start + step) for start in range(0, len(array), step)]
        for rows in chunks:
            computed = array if rows is None else array[rows]
            error = np.abs(written(name, rows) - computed)
            if not (error <= tolerance(computed)).all():
                raise ExportError(f"{name}: the file differs from the computed tensor")


def write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    weights: Weights,
    *,
    dtype: str,
    quantized: frozenset[str] = frozenset(),
    quantization: Quantization = "none",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model's tensors as one file or, above `shard_bytes`, as shards with an index.

    Args:
        folder: exists, without weights.
        tensors: float32, by name. Memory holds one, and the encoded tensors of the current file.
        weights: encodes and writes them.
        dtype: that they are rounded to.
        quantized: names of tensors that are quantized after rounding.
        quantization: of these.
        shard_bytes: largest file, unless a single tensor is larger.
    """
    shards: list[dict[str, int]] = []
    pending: dict[str, Any] = {}

    def flush() -> None:
        weights.write(folder / f"model-{len(shards) + 1:05d}.safetensors", pending)
        shards.append({name: part.nbytes for name, part in pending.items()})
        pending.clear()

    for name, array in tensors:
        to = quantization if name in quantized else "none"
        parts = weights.encode(name, array, dtype=dtype, quantization=to)
        if pending and sum(part.nbytes for part in (pending | parts).values()) > shard_bytes:
            flush()
        pending |= parts
    flush()
    if len(shards) == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"model-{number:05d}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(size for shard in shards for size in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
