"""The canonical LoRA adapter: y = W x + scale * B (A x), with A [r, in] and B [out, r].

Adapters of other tools may be DoRA (arXiv:2402.09353) with magnitudes m [out]: y = V x, where
V = m (W + scale * B A) / |W + scale * B A|, row by row. Names and layout are PEFT's. Both engines
start from the arrays made here, so that their loss curves start at the same point.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qwen_local.job.schema import LoraSpec, Quantization
from qwen_local.models.architecture import Architecture, Block, Place, block_prefix, linear_paths

Matrix = Literal["A", "B", "m"]

PREFIX = "base_model.model."
"""PEFT's name of a module is this and the model's own name."""
_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(0|[1-9]\d{0,3})\.(\w+(?:\.\w+)*)"
    r"\.(?:lora_[AB]\.weight|lora_magnitude_vector)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Training conditions beyond the base model's name. Defaults for adapters of other tools."""

    commit: str | None = None
    """Commit of the base model on the hub."""
    backend: Literal["mlx", "cuda"] | None = None
    """The engine, which decides the format of a quantized base model."""
    quantization: Quantization = "none"
    """Quantization of the base model's linear layers during training."""
    template_sha256: str | None = None
    """Hash of the chat template."""
    thinking: Literal["auto", "keep", "drop", "empty"] = "auto"
    """Treatment of reasoning in the data."""
    enable_thinking: bool | None = None
    """Argument of the chat template that starts answers like most of the training data."""
    max_length: int | None = None
    """Longest row allowed in training, in tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Trained arrays and the settings that apply them."""

    base: str
    """The base model: hub id, folder or `qwen-local/tiny`."""
    lora: LoraSpec
    blocks: tuple[Block, ...]
    """All blocks of the base model."""
    arrays: Mapping[str, np.ndarray]
    """float32, by `lora_name`. A layer in the range of `lora` may have no arrays, as in an adapter
    of scattered blocks; it then works as in the base model."""
    origin: Origin = Origin()

    @property
    def dora(self) -> bool:
        """True if it has DoRA magnitudes."""
        return is_dora(self.arrays)

    @property
    def places(self) -> tuple[Place, ...]:
        """The linear layers that carry it, in model order."""
        return places_of(self.arrays, self.blocks)

    def matrices(self, block: int, path: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return (A, B) of a linear layer, or None if it has none."""
        a, b = (self.arrays.get(lora_name(block, path, matrix)) for matrix in ("A", "B"))
        return None if a is None or b is None else (a, b)


def lora_name(block: int, path: str, matrix: Matrix) -> str:
    """Return PEFT's name of one array in `adapter_model.safetensors`; m is a DoRA magnitude.

    >>> lora_name(3, "self_attn.q_proj", "A")
    'base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight'
    """
    ending = "lora_magnitude_vector" if matrix == "m" else f"lora_{matrix}.weight"
    return f"{PREFIX}{block_prefix(block)}{path}.{ending}"


def place_of(name: str) -> Place | None:
    """Return the layer that an array belongs to, or None if `lora_name` makes no such name.

    >>> place_of(lora_name(3, "self_attn.q_proj", "A"))
    (3, 'self_attn.q_proj')
    """
    match = _NAME.fullmatch(name)
    return None if match is None else (int(match[1]), match[2])


def all_places(blocks: Collection[Block]) -> list[Place]:
    """List the linear layers of a model, in its order."""
    return [
        (number, linear.path)
        for number, block in enumerate(blocks)
        for linear in block.linears.values()
    ]


def places_of(names: Iterable[str], blocks: Collection[Block]) -> tuple[Place, ...]:
    """Return the linear layers of a model that arrays of these names belong to, in model order."""
    found = {place_of(name) for name in names}
    return tuple(place for place in all_places(blocks) if place in found)


def target_names(places: Collection[Place], blocks: Collection[Block]) -> tuple[str, ...]:
    """Return the short names of linear layers, in block order: what `lora.targets` lists."""
    used = {path for _, path in places}
    return tuple(name for name, path in linear_paths(blocks).items() if path in used)


def arrays_of_block(arrays: Mapping[str, np.ndarray], block: int) -> dict[str, np.ndarray]:
    """Return the arrays of one block, named as in a model that has only this block."""
    prefix, first = PREFIX + block_prefix(block), PREFIX + block_prefix(0)
    return {
        first + name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def is_dora(names: Iterable[str]) -> bool:
    """Return True if the arrays of these names include DoRA magnitudes."""
    return any(name.endswith(".lora_magnitude_vector") for name in names)


def array_shapes(
    architecture: Architecture, places: Iterable[Place], rank: int, *, dora: bool = False
) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every array of an adapter on these linear layers, in their order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for block, path in places:
        out, into = architecture.blocks[block].tensors[f"{path}.weight"]
        shapes[lora_name(block, path, "A")] = (rank, into)
        shapes[lora_name(block, path, "B")] = (out, rank)
        if dora:
            shapes[lora_name(block, path, "m")] = (out,)
    return shapes


def lora_shapes(architecture: Architecture, lora: LoraSpec) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every matrix of a new adapter, in a fixed order."""
    places = [
        (number, linear.path)
        for number in lora.blocks(architecture.layers)
        for name, linear in architecture.blocks[number].linears.items()
        if name in lora.target_names
    ]
    return array_shapes(architecture, places, lora.rank)


def initial_arrays(architecture: Architecture, lora: LoraSpec, seed: int) -> dict[str, np.ndarray]:
    """Draw A ~ U(-1/sqrt(in), 1/sqrt(in)) and set B = 0: the distribution of PEFT and mlx-lm.

    PEFT calls it kaiming_uniform(a = sqrt 5), whose bound is sqrt(6 / ((1 + 5) in)). Every matrix
    has its own generator, keyed by seed and name, so that adding a target changes no other matrix.

    Returns:
        float32 arrays by `lora_name`.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, shape in lora_shapes(architecture, lora).items():
        if ".lora_B." in name:
            arrays[name] = np.zeros(shape, np.float32)
        else:
            generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
            bound = 1.0 / np.sqrt(shape[1])
            arrays[name] = generator.uniform(-bound, bound, shape).astype(np.float32)
    return arrays
