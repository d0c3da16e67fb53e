"""An adapter merged into the weights that it was trained on, one tensor at a time.

W' = W + scale * (B A) in float32, rounded once when it is written (a DoRA's rows are scaled to its
magnitudes before that). W is the base as the training engine held it: after a run on a quantized
base, its dequantized weights. Merged into the original ones the adapter would answer to weights
that it never saw (QLoRA adapters lose much of what they learned that way; so they do when the sum
is quantized again).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qwen_local.adapters.lora import Adapter, Place, lora_name
from qwen_local.backends.weights import Weights
from qwen_local.errors import QwenLocalError
from qwen_local.files import write_json
from qwen_local.job.schema import Quantization
from qwen_local.models.architecture import LINEARS, Architecture, block_path

AT_ONCE = 1 << 24
"""Numbers that are compared at a time."""
Read = Callable[[str, slice | None], np.ndarray]
"""(name of a tensor; some of its rows, or None for all) -> float32."""
Tolerance = Callable[[np.ndarray], np.ndarray]

SHARD_BYTES = 500_000_000
"""Of one file, at most, where no tensor alone is larger: what is held in memory."""


class ExportError(QwenLocalError):
    """The exported model is not what was trained; nothing was left at its place."""


def linear_names(architecture: Architecture) -> dict[str, Place]:
    """Name of each linear layer's weight in the blocks -> (block, short name)."""
    return {
        f"model.layers.{layer}.{block_path(target)}.weight": (layer, target)
        for layer in range(architecture.layers)
        for target in LINEARS
    }


def merged_tensors(
    architecture: Architecture, adapter: Adapter, weights: Weights, quantization: Quantization
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the merged model, float32, in the order of the architecture.

    Args:
        architecture: of the base.
        adapter: fits it.
        weights: the base's files.
        quantization: what the linear layers were held in while the adapter was trained.

    What the files hold beyond the architecture (the head of a tied model) is left out.
    """
    linear = linear_names(architecture)
    for name in architecture.weight_shapes():
        yield name, merged_tensor(name, linear.get(name), adapter, weights, quantization)


def merged_tensor(
    name: str,
    place: Place | None,
    adapter: Adapter,
    weights: Weights,
    quantization: Quantization,
) -> np.ndarray:
    """One tensor of the merged model; `place` is that of a linear layer of a block."""
    if place is None:
        return weights.read(name)
    return merged(weights.read(name, quantization), adapter, *place)


def merged(weight: np.ndarray, adapter: Adapter, layer: int, target: str) -> np.ndarray:
    """The weight of a linear layer with the adapter in it.

    Args:
        weight: float32 [out, in].
        adapter: perhaps with nothing for this layer.
        layer: the block.
        target: short name of the layer.
    """
    if (pair := adapter.matrices(layer, target)) is None:
        return weight
    a, b = pair
    with np.errstate(all="ignore"):  # a false alarm of Accelerate on a Mac, numpy #28687
        summed: np.ndarray = weight + np.float32(adapter.lora.scale) * (b @ a)
    magnitude = adapter.arrays.get(lora_name(layer, target, "m"))
    if magnitude is None:
        return summed
    norm = np.sqrt(np.einsum("oi,oi->o", summed, summed))
    scaled: np.ndarray = summed * (magnitude / norm)[:, None]
    return scaled


def verify(tensors: Iterable[tuple[str, np.ndarray]], written: Read, tolerance: Tolerance) -> None:
    """Refuse files that hold anything else than these tensors, rounded once.

    Args:
        tensors: float32, by name.
        written: gives what the files hold.
        tolerance: gives the largest error that rounding makes of each number.

    Raises:
        ExportError: which tensor is another.
    """
    for name, array in tensors:
        pieces: list[slice | None] = [None]
        if array.ndim > 1:
            step = max(1, AT_ONCE // array.shape[1])
            pieces = [slice(start, start + step) for start in range(0, len(array), step)]
        for rows in pieces:
            piece = array if rows is None else array[rows]
            error = np.abs(written(name, rows) - piece)
            if not (error <= tolerance(piece)).all():
                raise ExportError(f"{name} was not written as it was computed")


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
        tensors: float32, by name; one is held at a time, and what the file under way has so far.
        weights: writes them.
        dtype: what they are rounded to.
        quantized: names of those that are then quantized.
        quantization: to what.
        shard_bytes: of a file's tensors, where none alone exceeds them.
    """
    shards: list[dict[str, int]] = []
    held: dict[str, Any] = {}

    def flush() -> None:
        weights.write(folder / f"model-{len(shards) + 1:05d}.safetensors", held)
        shards.append({name: part.nbytes for name, part in held.items()})
        held.clear()

    for name, array in tensors:
        to = quantization if name in quantized else "none"
        parts = weights.encode(name, array, dtype=dtype, quantization=to)
        if held and sum(part.nbytes for part in (held | parts).values()) > shard_bytes:
            flush()
        held |= parts
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
