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
from qwen_local.models.architecture import Architecture
from qwen_local.models.codes import (
    FLOATS,
    HINT,
    LONGEST,
    SPOKEN,
    Held,
    Wanted,
    is_codes,
    parts_of_codes,
)
from qwen_local.models.config import QUANTISED_HINT

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"
PASSED_OVER = (HEAD, ".rotary_emb.inv_freq")
"""Endings of names that some publishers write and no engine needs: the head where it is tied."""


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
    refused = _quantised_ends(architecture, found)
    for key, end in refused.items():
        problem = f"{end} is quantised; of bitsandbytes' codes those in the blocks are read"
        yield Fault(f"{name}: {found[key].file}: {key}", problem, QUANTISED_HINT)
    wanted = _wanted(architecture, found)
    told = tuple(key.removesuffix("weight") for key in refused)
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
        elif not key.endswith(PASSED_OVER):
            yield Fault(where, f"not a tensor of a {architecture.model_type} model", HINT)
    linears = _linears(architecture)
    if architecture.stored is not None and linears <= _floats(found).keys():
        problem = "says that the layers are quantised, but the files hold floats"
        hint = "remove quantization and quantization_config from a copy of the model"
        yield Fault(f"{name}: config.json", problem, hint)


def float_type(folder: Path) -> Literal["float32", "bfloat16", "float16"]:
    """The dtype that a folder's floats have; its last norm stands for all, being never quantised.

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


def _quantised_ends(architecture: Architecture, found: Mapping[str, Held]) -> dict[str, str]:
    """Embedding and head, where they are held as codes that are read in the blocks alone.

    Returns:
        Name of the tensor -> what it is.
    """
    stored = architecture.stored
    if stored is None or stored.scheme == "affine":
        return {}
    return {key: end for key, end in ENDS.items() if key in found and is_codes(stored, found[key].kind)}


def _wanted(architecture: Architecture, found: Mapping[str, Held]) -> dict[str, Wanted]:
    """What each tensor must be. Whether a matrix is in codes follows from its type."""
    stored = architecture.stored
    kinds = {key: held.kind for key, held in found.items()}
    wanted: dict[str, Wanted] = {}
    for key, shape in architecture.weight_shapes().items():
        if stored is not None and len(shape) == 2 and is_codes(stored, kinds.get(key, "")):
            wanted |= parts_of_codes(stored, key.removesuffix(".weight"), shape, kinds)
        else:
            wanted[key] = Wanted(tuple(FLOATS), shape)
    return wanted
