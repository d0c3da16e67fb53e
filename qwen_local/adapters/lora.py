"""The canonical LoRA adapter: y = W x + scale * B (A x), with A [r, in] and B [out, r].

One that others made may be a DoRA (arXiv:2402.09353), with magnitudes m [out] besides: y = V x with
V = m (W + scale * B A) / |W + scale * B A|, row by row. Names and layout are PEFT's. Both engines
start from the arrays made here, so that their curves start at one point.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qwen_local.job.schema import LoraSpec, Quantization
from qwen_local.models.architecture import LINEARS, Architecture, block_path

Place = tuple[int, str]
"""(block, short name) of a linear layer that carries an adapter."""
Matrix = Literal["A", "B", "m"]

_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(0|[1-9]\d{0,3})\.(?:self_attn|mlp)\.(\w+)"
    r"\.(?:lora_[AB]\.weight|lora_magnitude_vector)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What an adapter was trained on, beyond the model's name. Unknown where others made it."""

    commit: str | None = None
    """The base model's commit on the hub."""
    backend: Literal["mlx", "cuda"] | None = None
    """The engine, which decides the scheme of a quantized base."""
    quantization: Quantization = "none"
    """What the linear layers of the base's blocks were held in."""
    template_sha256: str | None = None
    """Of the chat template that it was trained under."""
    thinking: Literal["auto", "keep", "drop", "empty"] = "auto"
    """What became of the reasoning in its data."""
    enable_thinking: bool | None = None
    """What a generation prompt is asked for, to begin answers as most of its data did."""
    max_length: int | None = None
    """Tokens of the longest row that it could learn."""


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Trained arrays with what is needed to apply them."""

    base: str
    """The model that it was trained on: hub id, folder or `qwen-local/tiny`."""
    lora: LoraSpec
    layers: int
    """Blocks of the base model."""
    arrays: Mapping[str, np.ndarray]
    """float32, by `lora_name`. Linear layers that `lora` names and that have none here, as an
    adapter of scattered blocks leaves them, are those of the base."""
    origin: Origin = Origin()

    @property
    def dora(self) -> bool:
        """Whether it has magnitudes."""
        return is_dora(self.arrays)

    @property
    def places(self) -> tuple[Place, ...]:
        """The linear layers that carry it, in the order of the model."""
        return places_of(self.arrays)

    def matrices(self, layer: int, target: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(A, B) of a linear layer, where it carries them."""
        a, b = (self.arrays.get(lora_name(layer, target, matrix)) for matrix in ("A", "B"))
        return None if a is None or b is None else (a, b)


def lora_name(layer: int, target: str, matrix: Matrix) -> str:
    """PEFT's name of one array in `adapter_model.safetensors`; m is the magnitude of a DoRA.

    >>> lora_name(3, "q_proj", "A")
    'base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight'
    """
    what = "lora_magnitude_vector" if matrix == "m" else f"lora_{matrix}.weight"
    return f"base_model.model.model.layers.{layer}.{block_path(target)}.{what}"


def place_of(name: str) -> Place | None:
    """Where an array belongs, or None where the name is none of `lora_name`.

    >>> place_of(lora_name(3, "q_proj", "A"))
    (3, 'q_proj')
    """
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in LINEARS or block_path(match[2]) not in name:
        return None
    return int(match[1]), match[2]


def places_of(names: Iterable[str]) -> tuple[Place, ...]:
    """The linear layers that arrays of these names belong to, in the order of the model."""
    found = {place for name in names if (place := place_of(name)) is not None}
    return tuple(sorted(found, key=lambda place: (place[0], LINEARS.index(place[1]))))


def is_dora(names: Iterable[str]) -> bool:
    """Whether arrays of these names are those of a DoRA."""
    return any(name.endswith(".lora_magnitude_vector") for name in names)


def array_shapes(
    architecture: Architecture, places: Iterable[Place], rank: int, *, dora: bool = False
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every array of an adapter on these linear layers, in their order."""
    linear = architecture.linear_shapes()
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, target in places:
        out, into = linear[target]
        shapes[lora_name(layer, target, "A")] = (rank, into)
        shapes[lora_name(layer, target, "B")] = (out, rank)
        if dora:
            shapes[lora_name(layer, target, "m")] = (out,)
    return shapes


def lora_shapes(architecture: Architecture, lora: LoraSpec) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every matrix of an adapter that is trained here, in a fixed order."""
    blocks = lora.blocks(architecture.layers)
    places = [(layer, target) for layer in blocks for target in lora.target_names]
    return array_shapes(architecture, places, lora.rank)


def initial_arrays(architecture: Architecture, lora: LoraSpec, seed: int) -> dict[str, np.ndarray]:
    """A ~ U(-1/sqrt(in), 1/sqrt(in)) and B = 0: the distribution of PEFT and of mlx-lm.

    PEFT says kaiming_uniform(a = sqrt 5), whose bound is sqrt(6 / ((1 + 5) in)). Every matrix has
    its own generator, keyed by seed and name: adding a target leaves the others as they were.

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
