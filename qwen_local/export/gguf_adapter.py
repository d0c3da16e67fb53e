"""A LoRA adapter as a GGUF file, which llama.cpp puts on a base as it loads it (`--lora`).

A and B are float32 in PEFT's own layout. llama.cpp multiplies their product by alpha / rank, so
alpha here is scale * rank, whatever rule the scale came from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from qwen_local.adapters.lora import Adapter, array_shapes, places_of
from qwen_local.errors import Fault, ModelError
from qwen_local.export.gguf_about import About, add_about, labels
from qwen_local.export.gguf_encoding import encode
from qwen_local.export.gguf_model import announce, begin, new_file
from qwen_local.export.gguf_names import matrix_names
from qwen_local.export.gguf_read import HINT, numbers, open_file, shape_of, value
from qwen_local.models.architecture import LINEARS, Architecture
from qwen_local.models.config import shown

FLOATS = (
    gguf.GGMLQuantizationType.F32,
    gguf.GGMLQuantizationType.F16,
    gguf.GGMLQuantizationType.BF16,
)
"""What matrices may be held in; ours are the first."""


class HeldAdapter(NamedTuple):
    """What a file holds."""

    arrays: dict[str, np.ndarray]
    """float32, by PEFT's names."""
    scale: float
    """The multiplier itself."""
    rank: int


def write_adapter(
    path: Path, *, adapter: Adapter, architecture: Architecture, about: About
) -> None:
    """Write an adapter that llama.cpp puts on a GGUF file of its base.

    Args:
        path: of the new file; what an error leaves there is not whole, and neither is it synced.
        adapter: fits the base.
        architecture: of the base.
        about: what the file says of the adapter.

    Raises:
        ModelError: it is a DoRA; nothing was written.
        ExportError: a number is not finite, or the file cannot be written.
    """
    if adapter.dora:
        problem = "has the magnitudes of DoRA, which llama.cpp has no place for"
        raise ModelError.at("--adapter", problem, "merge it: export --to gguf")
    names = matrix_names(architecture, adapter.places)
    with new_file(path, architecture.model_type) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        add_about(writer, about, labels(about, architecture.parameters()))
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        alpha = adapter.lora.scale * adapter.lora.rank
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name, theirs in names.items():
            announce(writer, theirs, adapter.arrays[name].shape, "f32")
        begin(writer)
        for name in names:
            writer.write_tensor_data(encode(adapter.arrays[name], "f32", name))


def read_adapter(path: Path, architecture: Architecture) -> HeldAdapter:
    """Read an adapter's file.

    Args:
        path: of the file.
        architecture: of the base.

    Raises:
        ModelError: it is damaged, or no adapter of this model; all faults at once.
    """
    reader = open_file(path)
    everywhere = [(layer, target) for layer in range(architecture.layers) for target in LINEARS]
    ours = {theirs: name for name, theirs in matrix_names(architecture, everywhere).items()}
    held = {tensor.name: tensor for tensor in reader.tensors}
    rank = max((shape_of(t)[0] for name, t in held.items() if _is_a(name, t)), default=0)
    places = places_of(ours[name] for name in held if name in ours)
    shapes = array_shapes(architecture, places, rank) if rank else {}
    wanted = {theirs: shapes[name] for theirs, name in ours.items() if name in shapes}
    faults = list(_setting_faults(reader, path, architecture))
    if not wanted:
        faults.append(Fault(str(path), "holds no adapter of this model", HINT))
    faults += [
        Fault(f"{path}: {name}", problem, HINT)
        for name in sorted(wanted.keys() | held.keys())
        if (problem := _problem(held.get(name), wanted.get(name))) is not None
    ]
    if faults:
        raise ModelError(faults)
    arrays = {ours[name]: numbers(held[name]) for name in wanted}
    return HeldAdapter(arrays, value(reader, gguf.Keys.Adapter.LORA_ALPHA) / rank, rank)


def _is_a(name: str, tensor: gguf.ReaderTensor) -> bool:
    return name.endswith(".lora_a") and len(tensor.shape) == 2


def _setting_faults(
    reader: gguf.GGUFReader, path: Path, architecture: Architecture
) -> Iterator[Fault]:
    """What keeps the file from being an adapter for models of this family."""
    for key, wanted in (
        (gguf.Keys.General.TYPE, "adapter"),
        (gguf.Keys.General.ARCHITECTURE, architecture.model_type),
        (gguf.Keys.Adapter.TYPE, "lora"),
    ):
        if (found := value(reader, key)) != wanted:
            yield Fault(f"{path}: {key}", f"expected {wanted}; found {shown(found)}", HINT)
    alpha = value(reader, gguf.Keys.Adapter.LORA_ALPHA)
    if not isinstance(alpha, float) or not math.isfinite(alpha) or alpha == 0:
        problem = f"expected a number other than 0; found {shown(alpha)}"
        yield Fault(f"{path}: {gguf.Keys.Adapter.LORA_ALPHA}", problem, HINT)


def _problem(tensor: gguf.ReaderTensor | None, shape: tuple[int, ...] | None) -> str | None:
    """What is wrong with a tensor that is there, or wanted, or both."""
    if shape is None:
        return "not a matrix of this model's adapter"
    if tensor is None:
        return "missing"
    if tensor.tensor_type not in FLOATS:
        return f"expected F32, F16 or BF16; found {tensor.tensor_type.name}"
    if shape_of(tensor) != shape:
        return f"expected shape {shape}; found {shape_of(tensor)}"
    if not np.isfinite(numbers(tensor)).all():
        return "holds numbers that are not finite"
    return None
