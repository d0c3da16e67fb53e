"""The tensors that represent a quantized matrix in a model's files: codes, scales and metadata.

No library checks them: bitsandbytes trusts all scales and shapes. So every part must be present,
have the right type and shape, and have metadata that matches how the engine reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from qwen_local.errors import Fault
from qwen_local.models.architecture import Shape, Stored
from qwen_local.models.config import json_object, shown

HINT = "download or copy the model again"

FLOATS: Mapping[str, Literal["float32", "bfloat16", "float16"]] = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
}
"""Types of floating-point weights: name in safetensors -> dtype."""
QUANTIZED_TYPES = {"affine": "U32", "nf4": "U8", "int8": "I8"}
"""Type of a quantized matrix in safetensors, by `Stored.scheme`."""

NF4_BLOCK = 64
"""Number of weights that share a scale."""
NESTED_BLOCK = 256
"""Number of scales that share a scale of their own (double quantization)."""
STATE = ".weight.quant_state.bitsandbytes__nf4"
"""Metadata of an NF4 weight: a JSON object as bytes."""
FORMAT = ".weight_format"
"""Layout of an LLM.int8() weight: 0 for row-major. Not every writer adds it."""
METADATA = (STATE, FORMAT)
LONGEST_METADATA = 1_000
"""In bytes; longer ones are refused unread. bitsandbytes writes fewer than 200."""
LARGEST_FLOAT32 = 3.4e38


@dataclass(frozen=True, slots=True)
class Header:
    """A tensor's entry in the header of its file."""

    file: str
    type: str
    """As safetensors names it: `BF16`, `U8`, ..."""
    shape: Shape
    content: bytes
    """Of `METADATA`; empty for weights, which are not read, and above `LONGEST_METADATA`."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Requirements on a tensor."""

    types: tuple[str, ...]
    shape: Shape | None
    """None allows any shape."""
    content: bytes | None = None
    """None allows any content."""
    state: Mapping[str, tuple[object, ...]] | None = None
    """Allowed values of each key of a JSON object, () for any finite float; None for no object."""

    def faults(self, where: str, header: Header) -> Iterator[Fault]:
        """Yield the differences of a tensor.

        Args:
            where: name of the tensor in messages.
            header: its header.
        """
        if header.type not in self.types:
            yield Fault(where, f"expected {' or '.join(self.types)}; found {header.type}", HINT)
        elif self.shape is not None and header.shape != self.shape:
            yield Fault(where, f"expected shape {self.shape}; found {header.shape}", HINT)
        elif self.content is not None and header.content != self.content:
            problem = f"expected {list(self.content)}; found {list(header.content)}"
            yield Fault(where, problem, HINT)
        elif self.state is not None and math.prod(header.shape) > LONGEST_METADATA:
            problem = (
                f"expected at most {LONGEST_METADATA:,} bytes; found {math.prod(header.shape):,}"
            )
            yield Fault(where, problem, HINT)
        elif self.state is not None:
            yield from _state_faults(where, header.content, self.state)


def quantized_parts(
    stored: Stored, path: str, shape: Shape, types: Mapping[str, str]
) -> dict[str, Expected]:
    """Return the tensors that represent a quantized matrix.

    Args:
        stored: how the model is quantized.
        path: of the layer: `model.layers.0.mlp.up_proj`.
        shape: of the matrix, (out, in).
        types: type of every tensor in the files; some parts depend on others.
    """
    rows, columns = shape
    if stored.scheme == "affine":
        scales = Expected(tuple(FLOATS), (rows, columns // stored.group))
        codes = Expected(("U32",), (rows, columns * stored.bits // 32))
        return {f"{path}.weight": codes, f"{path}.scales": scales, f"{path}.biases": scales}
    if stored.scheme == "int8":
        parts = {
            f"{path}.weight": Expected(("I8",), shape),
            f"{path}.SCB": Expected(("F32",), (rows,)),
        }
        if path + FORMAT in types:
            parts[path + FORMAT] = Expected(("U8",), (), content=b"\0")
        return parts
    blocks = -(-rows * columns // NF4_BLOCK)
    state: dict[str, tuple[object, ...]] = {
        "quant_type": ("nf4",),
        "blocksize": (NF4_BLOCK,),
        "dtype": tuple(FLOATS.values()),
        "shape": ([rows, columns],),
    }
    parts = {
        f"{path}.weight": Expected(("U8",), (-(-rows * columns // 2), 1)),
        f"{path}.weight.absmax": Expected(("F32", "U8"), (blocks,)),
        f"{path}.weight.quant_map": Expected(("F32",), (16,)),
        path + STATE: Expected(("U8",), None, state=state),
    }
    if types.get(f"{path}.weight.absmax") == "U8":
        above = -(-blocks // NESTED_BLOCK)
        parts[f"{path}.weight.nested_absmax"] = Expected(("F32",), (above,))
        parts[f"{path}.weight.nested_quant_map"] = Expected(("F32",), (256,))
        state["nested_blocksize"] = (NESTED_BLOCK,)
        state["nested_dtype"] = ("float32",)
        state["nested_offset"] = ()
    return parts


def _state_faults(
    where: str, content: bytes, expected: Mapping[str, tuple[object, ...]]
) -> Iterator[Fault]:
    state = json_object(content, where, HINT)
    if isinstance(state, Fault):
        yield state
        return
    for key, allowed in expected.items():
        found = state.get(key)
        finite = type(found) is float and abs(found) <= LARGEST_FLOAT32
        if not (any(repr(found) == repr(value) for value in allowed) if allowed else finite):
            choice = " or ".join(map(shown, allowed)) or "a finite number"
            given = shown(found) if key in state else "nothing"
            yield Fault(f"{where}: {key}", f"expected {choice}; found {given}", HINT)
    if unknown := sorted(state.keys() - expected.keys()):
        yield Fault(where, f"expected nothing more; found {shown(unknown)}", HINT)
