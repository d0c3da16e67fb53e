"""An adapter merged into the weights that it was trained on, one tensor at a time.

W' = W + scale * (B A) in float32, rounded once when it is written. W is the base as the training
engine held it: after a run on a quantised base, its dequantised weights. Merged into the original
ones the adapter would answer to weights that it never saw (QLoRA adapters lose much of what they
learned that way; so they do when the sum is quantised again).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from qwen_local.adapters.lora import Adapter, lora_name
from qwen_local.backends.base import Weights
from qwen_local.backends.select import Choice
from qwen_local.errors import QwenLocalError
from qwen_local.files import write_json
from qwen_local.job import Quantization
from qwen_local.models.architecture import LINEARS, Architecture, block_path
from qwen_local.models.source import ModelFiles

SHARD_BYTES = 2_000_000_000
"""Of floats in one file, at most: what is held in memory, and again as float32."""


ROUNDING = {"float32": (24, 0.0), "bfloat16": (8, 0.0), "float16": (11, 2.0**-25)}
"""(significant bits, a half of the smallest step): |rounded - x| <= |x| / 2**bits + that half."""


class ExportError(QwenLocalError):
    """The exported model is not what was trained; nothing was left at its place."""


def open_weights(choice: Choice, model: ModelFiles) -> Weights:
    """The files of a model, read and written by an engine's library."""
    if choice.backend == "mlx":
        from qwen_local.backends.mlx.weights import MlxWeights

        return MlxWeights(model.folder, choice.device, model.architecture.stored)
    from qwen_local.backends.cuda.weights import TorchWeights

    return TorchWeights(model.folder, choice.device)


def linear_names(architecture: Architecture) -> dict[str, tuple[int, str]]:
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
        if name not in linear:
            yield name, weights.read(name, "none")
            continue
        array = weights.read(name, quantization)
        a, b = (adapter.arrays.get(lora_name(*linear[name], matrix)) for matrix in ("A", "B"))
        if a is not None and b is not None:
            with np.errstate(all="ignore"):  # a false alarm of Accelerate on a Mac, numpy #28687
                array = array + np.float32(adapter.lora.scale) * (b @ a)
        yield name, array


def verified(
    tensors: Iterable[tuple[str, np.ndarray]], written: Weights, dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    """The same tensors, each once it was found in the files as itself, rounded once.

    Raises:
        ExportError: a tensor in the files is anything else.
    """
    bits, smallest = ROUNDING[dtype]
    for name, array in tensors:
        error = np.abs(written.read(name, "none") - array)
        if not (error <= np.abs(array) * 2.0**-bits + smallest).all():
            raise ExportError(f"{name} was not written as it was computed")
        yield name, array


def write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    weights: Weights,
    *,
    dtype: str,
    quantised: frozenset[str] = frozenset(),
    quantization: Quantization = "none",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model's tensors as one file or, above `shard_bytes`, as shards with an index.

    Args:
        folder: exists, without weights.
        tensors: float32, by name; only those of one shard are held at a time.
        weights: writes them.
        dtype: what they are rounded to.
        quantised: names of those that are then quantised.
        quantization: to what.
        shard_bytes: of a file's tensors in `dtype`, before they are quantised.
    """
    width = 4 if dtype == "float32" else 2
    shards: list[dict[str, int]] = []
    held: dict[str, np.ndarray] = {}

    def flush() -> None:
        path = folder / f"model-{len(shards) + 1:05d}.safetensors"
        shards.append(
            weights.write(path, held, dtype=dtype, quantised=quantised, quantization=quantization)
        )
        held.clear()

    for name, array in tensors:
        if held and (sum(a.size for a in held.values()) + array.size) * width > shard_bytes:
            flush()
        held[name] = array
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
