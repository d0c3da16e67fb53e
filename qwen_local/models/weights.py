"""What a model's safetensors hold, by their headers: no engine should meet a surprise in them.

transformers fills a tensor that is missing with random numbers and a warning, and passes over one
that it does not know; mlx-lm stops with a traceback. Neither is an answer to a damaged download.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

from qwen_local.errors import Fault
from qwen_local.models.architecture import Architecture

Shape = tuple[int, ...]

HINT = "download or copy the model again"
PASSED_OVER = ("lm_head.weight", ".rotary_emb.inv_freq")
"""Endings of names that some publishers write and no engine needs: the head where it is tied."""


FLOATS: Mapping[str, Literal["float32", "bfloat16", "float16"]] = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
}
"""The types of weights, as safetensors and as an engine calls them."""
NORM = "model.norm.weight"
NF4_PARTS = (
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "quant_state.bitsandbytes__nf4",
)
"""What stands beside the codes of an NF4 weight; bitsandbytes checks it when it reads it."""


def tensor_faults(folder: Path, name: str, architecture: Architecture) -> Iterator[Fault]:
    """What is damaged, missing, unknown, of another type or shape in a folder's weights.

    Args:
        folder: a model folder with `model*.safetensors`.
        name: the model, as messages name it.
        architecture: of its config.json.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[str, str, Shape]] = {}  # file, type, shape
    damaged = False
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(file, framework="np") as tensors:
                for key in tensors.keys():  # noqa: SIM118  # not a mapping
                    if key in found:
                        problem, hint = "stands in another file, too", "keep one of the two files"
                        yield Fault(f"{name}: {file.name}: {key}", problem, hint)
                    tensor = tensors.get_slice(key)
                    found[key] = (file.name, tensor.get_dtype(), tuple(tensor.get_shape()))
        except (OSError, SafetensorError) as error:
            damaged = True
            yield Fault(f"{name}: {file.name}", f"not a readable safetensors file: {error}", HINT)
    wanted = _wanted(architecture, found.keys())
    for key, (file_name, kind, shape) in found.items():
        where = f"{name}: {file_name}: {key}"
        if key not in wanted:
            if not key.endswith(PASSED_OVER):
                yield Fault(where, f"not a tensor of a {architecture.model_type} model", HINT)
            continue
        kinds, expected = wanted[key]
        if kind not in kinds:
            yield Fault(where, f"expected {' or '.join(kinds)}; found {kind}", HINT)
        elif expected is not None and shape != expected:
            yield Fault(where, f"expected shape {expected}; found {shape}", HINT)
    if not damaged:
        for key in sorted(wanted.keys() - found.keys()):
            yield Fault(f"{name}: {key}", "missing from the weights", HINT)


def float_type(folder: Path) -> Literal["float32", "bfloat16", "float16"]:
    """The dtype that a folder's floats have; its last norm stands for all, being never quantised.

    Args:
        folder: whose tensors were checked.
    """
    from safetensors import safe_open

    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            if NORM in tensors.keys():  # noqa: SIM118  # not a mapping
                return FLOATS[tensors.get_slice(NORM).get_dtype()]
    raise AssertionError(f"{folder} has no {NORM}")


def _wanted(
    architecture: Architecture, found: Collection[str]
) -> dict[str, tuple[tuple[str, ...], Shape | None]]:
    """Name -> (allowed types, shape or None for any).

    A matrix is quantised if what belongs to its codes is there, as both engines read it.
    """
    stored = architecture.stored
    wanted: dict[str, tuple[tuple[str, ...], Shape | None]] = {}
    for key, shape in architecture.weight_shapes().items():
        path = key.removesuffix(".weight")
        wanted[key] = (tuple(FLOATS), shape)
        if stored is None or len(shape) != 2:
            continue
        rows, columns = shape
        if stored.scheme == "affine" and f"{path}.scales" in found:
            wanted[key] = (("U32",), (rows, columns * stored.bits // 32))
            for part in ("scales", "biases"):
                wanted[f"{path}.{part}"] = (tuple(FLOATS), (rows, columns // stored.group))
        elif stored.scheme == "nf4" and f"{key}.absmax" in found:
            wanted[key] = (("U8",), ((rows * columns + 1) // 2, 1))
            parts = [part for part in NF4_PARTS if f"{key}.{part}" in found]
            wanted |= {f"{key}.{part}": (("U8", "F32"), None) for part in parts}
        elif stored.scheme == "int8" and f"{path}.SCB" in found:
            wanted[key] = (("I8",), shape)
            wanted[f"{path}.SCB"] = (("F32",), (rows,))
            if f"{path}.weight_format" in found:
                wanted[f"{path}.weight_format"] = (("U8",), ())
    return wanted
