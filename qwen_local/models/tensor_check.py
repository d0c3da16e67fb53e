"""Checks of a model's tensors by the headers of its safetensors files, before an engine loads them.

transformers fills a missing tensor with random numbers and a warning, and ignores an unknown one;
mlx-lm stops with a traceback. Neither is a good answer to a damaged download.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from qwen_local.errors import Fault
from qwen_local.models.architecture import (
    EMBEDDING,
    HEAD,
    NORM,
    Architecture,
    Shape,
    Stored,
)
from qwen_local.models.config import QUANTIZED_HINT
from qwen_local.models.families import FAMILIES
from qwen_local.models.quantized import (
    FLOATS,
    HINT,
    LONGEST_METADATA,
    METADATA,
    QUANTIZED_TYPES,
    Expected,
    Header,
    quantized_parts,
)

OUTSIDE_BLOCKS = {EMBEDDING: "the embedding", HEAD: "the head"}
"""Matrices outside the blocks, and their names in messages."""


def tensor_faults(folder: Path, name: str, architecture: Architecture) -> Iterator[Fault]:
    """Yield tensors that are damaged, missing, unknown, or of the wrong type or shape.

    The weights are not read, which would take as long as loading them. So infinities and NaN are
    not found.

    Args:
        folder: a model folder with `model*.safetensors`.
        name: name of the model in messages.
        architecture: from its config.json.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Header] = {}
    damaged = False
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(file, framework="np") as tensors:
                for key in tensors.keys():  # noqa: SIM118  # not a mapping
                    if key in found:
                        problem, hint = "is also in another file", "keep one of the two files"
                        yield Fault(f"{name}: {file.name}: {key}", problem, hint)
                    found[key] = _header(tensors, file.name, key)
        except (OSError, SafetensorError) as error:
            damaged = True
            yield Fault(f"{name}: {file.name}", f"not a readable safetensors file: {error}", HINT)
    yield from _faults(name, architecture, found, damaged=damaged)


def float_type(folder: Path) -> Literal["float32", "bfloat16", "float16"]:
    """Return the dtype of a checked folder's floats: that of the last norm, which stays a float."""
    return FLOATS[_types(folder)[NORM]]


def float_layers(folder: Path, architecture: Architecture) -> list[str]:
    """List the blocks' linear layers that are not quantized: `model.layers.0.mlp.up_proj`, ...

    Args:
        folder: a checked model folder.
        architecture: from its config.json.
    """
    types = _types(folder)
    linears = architecture.linear_weights()
    return [key.removesuffix(".weight") for key in linears if types[key] in FLOATS]


def _faults(
    name: str, architecture: Architecture, found: Mapping[str, Header], *, damaged: bool
) -> Iterator[Fault]:
    """Compare the tensors that were found with the model's.

    Args:
        name: name of the model in messages.
        architecture: from its config.json.
        found: by tensor name.
        damaged: whether a file could not be read, so that missing tensors may be in it.
    """
    types = {key: header.type for key, header in found.items()}
    expected, outside = _expected(architecture, types), _quantized_outside(architecture, types)
    for key in outside:
        problem = f"{OUTSIDE_BLOCKS[key]} is quantized, which is supported for MLX folders only"
        yield Fault(f"{name}: {found[key].file}: {key}", problem, QUANTIZED_HINT)
    reported = tuple(key.removesuffix("weight") for key in outside)
    for key in sorted(expected.keys() | found.keys()):
        if key.startswith(reported):
            continue
        if key not in found:
            if not damaged:
                yield Fault(f"{name}: {key}", "missing from the weights", HINT)
            continue
        where = f"{name}: {found[key].file}: {key}"
        if key in expected:
            yield from expected[key].faults(where, found[key])
        else:
            yield Fault(where, f"not a tensor of a {architecture.model_type} model", HINT)
    floats = all(types.get(key) in FLOATS for key in architecture.linear_weights())
    if architecture.stored is not None and floats:
        problem = "describes quantized layers, but the files hold floats"
        hint = "remove quantization and quantization_config from a copy of the model"
        yield Fault(f"{name}: config.json", problem, hint)


def _types(folder: Path) -> dict[str, str]:
    """Return the safetensors type of every tensor in a folder."""
    from safetensors import safe_open

    types: dict[str, str] = {}
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            types |= {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
    return types


def _header(tensors: Any, file: str, key: str) -> Header:
    """Read the header of one tensor in an open file, and its content if that is metadata."""
    tensor = tensors.get_slice(key)
    type, shape = tensor.get_dtype(), tuple(tensor.get_shape())
    metadata = type == "U8" and key.endswith(METADATA) and math.prod(shape) <= LONGEST_METADATA
    return Header(file, type, shape, tensors.get_tensor(key).tobytes() if metadata else b"")


def _quantized_outside(architecture: Architecture, types: Mapping[str, str]) -> list[str]:
    """List embedding and head if bitsandbytes quantized them, which only blocks support."""
    stored = architecture.stored
    if stored is None or stored.scheme == "affine":
        return []
    return [key for key in OUTSIDE_BLOCKS if types.get(key) == QUANTIZED_TYPES[stored.scheme]]


def _expected(architecture: Architecture, types: Mapping[str, str]) -> dict[str, Expected]:
    """Return the requirements on each tensor; its type decides whether a matrix is quantized.

    A tied model may have a head in its files, which no engine needs.
    """
    stored = architecture.stored
    shapes = architecture.weight_shapes()
    expected: dict[str, Expected] = {}
    for key, shape in shapes.items():
        if stored is None or not _is_quantized(stored, shape, types.get(key)):
            expected[key] = Expected(tuple(FLOATS), shape)
        else:
            expected |= quantized_parts(stored, key.removesuffix(".weight"), shape, types)
    ignored = FAMILIES[architecture.model_type].ignored_tensors
    old = [key for key in types if key.endswith(ignored)]
    expected |= dict.fromkeys(old, Expected(tuple(FLOATS), None))
    if HEAD in types:
        expected.setdefault(HEAD, Expected(tuple(FLOATS), shapes[EMBEDDING]))
    return expected


def _is_quantized(stored: Stored, shape: Shape, type: str | None) -> bool:
    """Return True for a quantized matrix. MLX leaves rows alone that are not whole groups."""
    whole = stored.scheme != "affine" or shape[-1] % stored.group == 0
    return len(shape) == 2 and type == QUANTIZED_TYPES[stored.scheme] and whole
