"""What a model's files hold for a matrix that is quantized: codes, and what they are read by.

Nothing else checks them: bitsandbytes takes any scales for the right ones, and any shape as given.
So every part must be there, of its type and shape, and must say that it is read as it will be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from qwen_local.errors import Fault
from qwen_local.models.architecture import Stored
from qwen_local.models.config import json_object, shown

Shape = tuple[int, ...]

HINT = "download or copy the model again"

FLOATS: Mapping[str, Literal["float32", "bfloat16", "float16"]] = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
}
"""The types of weights, as safetensors and as an engine calls them."""
CODES = {"affine": "U32", "nf4": "U8", "int8": "I8"}
"""The type of a matrix that is held as codes, by `Stored.scheme`."""

NF4_BLOCK = 64
"""Weights of a matrix that share a scale."""
NESTED_BLOCK = 256
"""Scales that share one of their own, where they are codes, too (double quantization)."""
STATE = ".weight.quant_state.bitsandbytes__nf4"
"""A JSON object, as bytes: how the codes of an NF4 weight are to be read."""
FORMAT = ".weight_format"
"""How LLM.int8() codes lie: 0 for row by row. Not every writer leaves it."""
SPOKEN = (STATE, FORMAT)
LONGEST = 1_000
"""Bytes that are read of these; bitsandbytes writes fewer than 200."""
LARGEST_FLOAT32 = 3.4e38


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor, as the header of its file has it."""

    file: str
    kind: str
    """Its type, as safetensors calls it."""
    shape: Shape
    content: bytes
    """Of one that is `SPOKEN`; empty for weights, which are not read, and beyond `LONGEST`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a tensor must be."""

    kinds: tuple[str, ...]
    shape: Shape | None
    """None for any."""
    content: bytes | None = None
    """None for any."""
    state: Mapping[str, tuple[object, ...]] | None = None
    """What each key of a JSON object may hold, () for any finite float; None where it is none."""

    def faults(self, where: str, held: Held) -> Iterator[Fault]:
        """How a tensor differs from it.

        Args:
            where: how messages name the tensor.
            held: what is there.
        """
        if held.kind not in self.kinds:
            yield Fault(where, f"expected {' or '.join(self.kinds)}; found {held.kind}", HINT)
        elif self.shape is not None and held.shape != self.shape:
            yield Fault(where, f"expected shape {self.shape}; found {held.shape}", HINT)
        elif self.content is not None and held.content != self.content:
            problem = f"expected {list(self.content)}; found {list(held.content)}"
            yield Fault(where, problem, HINT)
        elif self.state is not None and math.prod(held.shape) > LONGEST:
            problem = f"expected at most {LONGEST:,} bytes; found {math.prod(held.shape):,}"
            yield Fault(where, problem, HINT)
        elif self.state is not None:
            yield from _state_faults(where, held.content, self.state)


def parts_of_codes(
    stored: Stored, path: str, shape: Shape, kinds: Mapping[str, str]
) -> dict[str, Wanted]:
    """The tensors that stand for a matrix in codes.

    Args:
        stored: how the model is quantized.
        path: of the layer: `model.layers.0.mlp.up_proj`.
        shape: of the matrix, (out, in).
        kinds: the type of every tensor that is there; some parts go with others.
    """
    rows, columns = shape
    if stored.scheme == "affine":
        scales = Wanted(tuple(FLOATS), (rows, columns // stored.group))
        codes = Wanted(("U32",), (rows, columns * stored.bits // 32))
        return {f"{path}.weight": codes, f"{path}.scales": scales, f"{path}.biases": scales}
    if stored.scheme == "int8":
        parts = {f"{path}.weight": Wanted(("I8",), shape), f"{path}.SCB": Wanted(("F32",), (rows,))}
        if path + FORMAT in kinds:
            parts[path + FORMAT] = Wanted(("U8",), (), content=b"\0")
        return parts
    blocks = -(-rows * columns // NF4_BLOCK)
    state: dict[str, tuple[object, ...]] = {
        "quant_type": ("nf4",),
        "blocksize": (NF4_BLOCK,),
        "dtype": tuple(FLOATS.values()),
        "shape": ([rows, columns],),
    }
    parts = {
        f"{path}.weight": Wanted(("U8",), (-(-rows * columns // 2), 1)),
        f"{path}.weight.absmax": Wanted(("F32", "U8"), (blocks,)),
        f"{path}.weight.quant_map": Wanted(("F32",), (16,)),
        path + STATE: Wanted(("U8",), None, state=state),
    }
    if kinds.get(f"{path}.weight.absmax") == "U8":
        above = -(-blocks // NESTED_BLOCK)
        parts[f"{path}.weight.nested_absmax"] = Wanted(("F32",), (above,))
        parts[f"{path}.weight.nested_quant_map"] = Wanted(("F32",), (256,))
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
            wanted = " or ".join(map(shown, allowed)) or "a finite number"
            given = shown(found) if key in state else "nothing"
            yield Fault(f"{where}: {key}", f"expected {wanted}; found {given}", HINT)
    if unknown := sorted(state.keys() - expected.keys()):
        yield Fault(where, f"expected nothing more; found {shown(unknown)}", HINT)
