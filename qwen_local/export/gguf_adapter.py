"""A LoRA adapter as a GGUF file, which llama.cpp applies when it loads a base model (`--lora`).

A and B are float32 in PEFT's layout. llama.cpp multiplies their product by alpha / rank, so alpha
here is scale * rank, with or without rsLoRA.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from qwen_local.adapters.lora import Adapter, all_places, array_shapes, places_of
from qwen_local.errors import Fault, ModelError
from qwen_local.export.gguf_about import About, add_about, labels
from qwen_local.export.gguf_encoding import encode
from qwen_local.export.gguf_model import declare, new_file, write_header
from qwen_local.export.gguf_names import gguf_architecture, matrix_names
from qwen_local.export.gguf_read import HINT, open_file, shape_of, to_float32, value
from qwen_local.models.architecture import Architecture
from qwen_local.models.config import shown

FLOATS = (
    gguf.GGMLQuantizationType.F32,
    gguf.GGMLQuantizationType.F16,
    gguf.GGMLQuantizationType.BF16,
)
"""Allowed types of matrices; files written here have the first."""


class GgufAdapter(NamedTuple):
    """Content of a file."""

    arrays: dict[str, np.ndarray]
    """float32, by PEFT's names."""
    scale: float
    """Multiplier of B A."""
    rank: int


def write_adapter(
    path: Path, *, adapter: Adapter, architecture: Architecture, about: About
) -> None:
    """Write an adapter that llama.cpp applies to a GGUF file of its base model.

    Args:
        path: of the new file, which is not synced; an error may leave an incomplete one.
        adapter: fits the base model.
        architecture: of the base model.
        about: descriptive metadata.

    Raises:
        ModelError: the adapter is a DoRA; nothing was written.
        ExportError: a value is not finite, or the file cannot be written.
    """
    if adapter.dora:
        problem = "has DoRA magnitudes, which llama.cpp does not support"
        raise ModelError.at("adapter", problem, "merge it: `qwen-local export --to gguf`")
    names = matrix_names(architecture, adapter.places)
    with new_file(path, gguf_architecture(architecture)) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        add_about(writer, about, labels(about, architecture.parameters()))
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        alpha = adapter.lora.scale * adapter.lora.rank
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name, theirs in names.items():
            declare(writer, theirs, adapter.arrays[name].shape, "f32")
        write_header(writer)
        for name in names:
            writer.write_tensor_data(encode(adapter.arrays[name], "f32", name))


def read_adapter(path: Path, architecture: Architecture) -> GgufAdapter:
    """Read an adapter's file.

    Args:
        path: of the file.
        architecture: of the base model.

    Raises:
        ModelError: it is damaged, or not an adapter of this model; all faults together.
    """
    reader = open_file(path)
    everywhere = matrix_names(architecture, all_places(architecture.blocks))
    ours = {theirs: name for name, theirs in everywhere.items()}
    found = {tensor.name: tensor for tensor in reader.tensors}
    rank = max((shape_of(t)[0] for name, t in found.items() if _is_a(name, t)), default=0)
    places = places_of((ours[name] for name in found if name in ours), architecture.blocks)
    shapes = array_shapes(architecture, places, rank) if rank else {}
    expected = {theirs: shapes[name] for theirs, name in ours.items() if name in shapes}
    faults = list(_setting_faults(reader, path, architecture))
    if not expected:
        faults.append(Fault(str(path), "holds no adapter of this model", HINT))
    faults += [
        Fault(f"{path}: {name}", problem, HINT)
        for name in sorted(expected.keys() | found.keys())
        if (problem := _problem(found.get(name), expected.get(name))) is not None
    ]
    if faults:
        raise ModelError(faults)
    arrays = {ours[name]: to_float32(found[name]) for name in expected}
    return GgufAdapter(arrays, value(reader, gguf.Keys.Adapter.LORA_ALPHA) / rank, rank)


def _is_a(name: str, tensor: gguf.ReaderTensor) -> bool:
    return name.endswith(".lora_a") and len(tensor.shape) == 2


def _setting_faults(
    reader: gguf.GGUFReader, path: Path, architecture: Architecture
) -> Iterator[Fault]:
    """Yield settings that no adapter for this model family has."""
    for key, expected in (
        (gguf.Keys.General.TYPE, "adapter"),
        (gguf.Keys.General.ARCHITECTURE, gguf_architecture(architecture)),
        (gguf.Keys.Adapter.TYPE, "lora"),
    ):
        if (found := value(reader, key)) != expected:
            yield Fault(f"{path}: {key}", f"expected {expected}; found {shown(found)}", HINT)
    alpha = value(reader, gguf.Keys.Adapter.LORA_ALPHA)
    if not isinstance(alpha, float) or not math.isfinite(alpha) or alpha == 0:
        problem = f"expected a number other than 0; found {shown(alpha)}"
        yield Fault(f"{path}: {gguf.Keys.Adapter.LORA_ALPHA}", problem, HINT)


def _problem(tensor: gguf.ReaderTensor | None, shape: tuple[int, ...] | None) -> str | None:
    """Compare a tensor, None if it is missing, with a shape, None if it is not expected."""
    if shape is None:
        return "not an adapter matrix of this model"
    if tensor is None:
        return "missing"
    if tensor.tensor_type not in FLOATS:
        return f"expected F32, F16 or BF16; found {tensor.tensor_type.name}"
    if shape_of(tensor) != shape:
        return f"expected shape {shape}; found {shape_of(tensor)}"
    if not np.isfinite(to_float32(tensor)).all():
        return "holds values that are not finite"
    return None
