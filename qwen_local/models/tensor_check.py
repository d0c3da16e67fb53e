"""What a model's safetensors hold, by their headers: no engine should meet a surprise in them.

transformers fills a tensor that is missing with random numbers and a warning, and passes over one
that it does not know; mlx-lm stops with a traceback. Neither is an answer to a damaged download.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from qwen_local.errors import Fault
from qwen_local.models.architecture import Architecture, Stored
from qwen_local.models.config import QUANTIZED_HINT
from qwen_local.models.quantized import (
    CODES,
    FLOATS,
    HINT,
    LONGEST,
    SPOKEN,
    Held,
    Shape,
    Wanted,
    parts_of_codes,
)

NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
ENDS = {EMBEDDING: "the embedding", HEAD: "the head"}


def tensor_faults(folder: Path, name: str, architecture: Architecture) -> Iterator[Fault]:
    """What is damaged, missing, unknown, of another type or shape in a folder's weights.

    Weights and scales themselves are not read, which would take as long as loading them: one that
    is infinite or no number passes here.

    Args:
        folder: a model folder with `model*.safetensors`.
        name: the model, as messages name it.
        architecture: of its config.json.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Held] = {}
    damaged = False
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(file, framework="np") as tensors:
                for key in tensors.keys():  # noqa: SIM118  # not a mapping
                    if key in found:
                        problem, hint = "stands in another file, too", "keep one of the two files"
                        yield Fault(f"{name}: {file.name}: {key}", problem, hint)
                    found[key] = _held(tensors, file.name, key)
        except (OSError, SafetensorError) as error:
            damaged = True
            yield Fault(f"{name}: {file.name}", f"not a readable safetensors file: {error}", HINT)
    yield from _faults(name, architecture, found, damaged=damaged)


def float_type(folder: Path) -> Literal["float32", "bfloat16", "float16"]:
    """The dtype that a folder's floats have; its last norm stands for all, being never quantized.

    Args:
        folder: whose tensors were checked.
    """
    return FLOATS[_kinds(folder)[NORM]]


def float_layers(folder: Path, architecture: Architecture) -> list[str]:
    """The blocks' linear layers that a folder holds as floats: `model.layers.0.mlp.up_proj`, ...

    Args:
        folder: whose tensors were checked.
        architecture: of its config.json.
    """
    kinds = _kinds(folder)
    linears = _linears(architecture)
    return [key.removesuffix(".weight") for key in linears if kinds[key] in FLOATS]


def _faults(
    name: str, architecture: Architecture, found: Mapping[str, Held], *, damaged: bool
) -> Iterator[Fault]:
    """How the tensors that were found differ from the model's.

    Args:
        name: the model, as messages name it.
        architecture: of its config.json.
        found: by name.
        damaged: a file could not be read: what is not found may be there.
    """
    kinds = {key: held.kind for key, held in found.items()}
    wanted, ends = _wanted(architecture, kinds), _quantized_ends(architecture, kinds)
    for key in ends:
        problem = f"{ENDS[key]} is quantized, which only MLX folders may have"
        yield Fault(f"{name}: {found[key].file}: {key}", problem, QUANTIZED_HINT)
    told = tuple(key.removesuffix("weight") for key in ends)
    for key in sorted(wanted.keys() | found.keys()):
        if key.startswith(told):
            continue
        if key not in found:
            if not damaged:
                yield Fault(f"{name}: {key}", "missing from the weights", HINT)
            continue
        where = f"{name}: {found[key].file}: {key}"
        if key in wanted:
            yield from wanted[key].faults(where, found[key])
        else:
            yield Fault(where, f"not a tensor of a {architecture.model_type} model", HINT)
    floats = all(kinds.get(key) in FLOATS for key in _linears(architecture))
    if architecture.stored is not None and floats:
        problem = "says that the layers are quantized, but the files hold floats"
        hint = "remove quantization and quantization_config from a copy of the model"
        yield Fault(f"{name}: config.json", problem, hint)


def _kinds(folder: Path) -> dict[str, str]:
    """The type of every tensor of a folder."""
    from safetensors import safe_open

    kinds: dict[str, str] = {}
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            kinds |= {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
    return kinds


def _held(tensors: Any, file: str, key: str) -> Held:
    """One tensor of an open file."""
    tensor = tensors.get_slice(key)
    kind, shape = tensor.get_dtype(), tuple(tensor.get_shape())
    spoken = kind == "U8" and key.endswith(SPOKEN) and math.prod(shape) <= LONGEST
    return Held(file, kind, shape, tensors.get_tensor(key).tobytes() if spoken else b"")


def _linears(architecture: Architecture) -> list[str]:
    """The weights of the blocks' linear layers, as the files name them."""
    shapes = architecture.weight_shapes()
    return [key for key, shape in shapes.items() if len(shape) == 2 and key not in ENDS]


def _quantized_ends(architecture: Architecture, kinds: Mapping[str, str]) -> list[str]:
    """Embedding and head, where they are codes of bitsandbytes, which are read in blocks alone."""
    stored = architecture.stored
    if stored is None or stored.scheme == "affine":
        return []
    return [key for key in ENDS if kinds.get(key) == CODES[stored.scheme]]


def _wanted(architecture: Architecture, kinds: Mapping[str, str]) -> dict[str, Wanted]:
    """What each tensor must be; whether a matrix is in codes follows from its type.

    Some write a head although it is tied, which no engine needs.
    """
    stored = architecture.stored
    shapes = architecture.weight_shapes()
    wanted: dict[str, Wanted] = {}
    for key, shape in shapes.items():
        if stored is None or not _in_codes(stored, shape, kinds.get(key)):
            wanted[key] = Wanted(tuple(FLOATS), shape)
        else:
            wanted |= parts_of_codes(stored, key.removesuffix(".weight"), shape, kinds)
    if architecture.model_type == "qwen2":  # old files hold them; mlx-lm's qwen3 stops at them
        old = [key for key in kinds if key.endswith(".self_attn.rotary_emb.inv_freq")]
        wanted |= dict.fromkeys(old, Wanted(tuple(FLOATS), None))
    if HEAD in kinds:
        wanted.setdefault(HEAD, Wanted(tuple(FLOATS), shapes[EMBEDDING]))
    return wanted


def _in_codes(stored: Stored, shape: Shape, kind: str | None) -> bool:
    """Whether a tensor is a matrix in codes. MLX makes none of rows that are no whole groups."""
    whole = stored.scheme != "affine" or shape[-1] % stored.group == 0
    return len(shape) == 2 and kind == CODES[stored.scheme] and whole
