"""The canonical LoRA adapter: y = W x + scale * B (A x), with A [r, in] and B [out, r].

Names and layout are PEFT's. Both engines start from the arrays made here, so that their curves
start at one point.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qwen_local.job import LoraSpec, Quantization
from qwen_local.models.architecture import Architecture, block_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What an adapter was trained on, beyond the model's name. Unknown where others made it."""

    commit: str | None = None
    """The base model's commit on the hub."""
    backend: Literal["mlx", "cuda"] | None = None
    """The engine, which decides the scheme of a quantised base."""
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
    """float32, by `lora_name`."""
    origin: Origin = Origin()


def lora_name(layer: int, target: str, matrix: Literal["A", "B"]) -> str:
    """PEFT's name of one matrix in `adapter_model.safetensors`.

    >>> lora_name(3, "q_proj", "A")
    'base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight'
    """
    return f"base_model.model.model.layers.{layer}.{block_path(target)}.lora_{matrix}.weight"


def lora_shapes(architecture: Architecture, lora: LoraSpec) -> dict[str, tuple[int, int]]:
    """Name -> shape of every adapter matrix of this model, in a fixed order."""
    linear = architecture.linear_shapes()
    shapes: dict[str, tuple[int, int]] = {}
    for layer in lora.blocks(architecture.layers):
        for target in lora.target_names:
            out, into = linear[target]
            shapes[lora_name(layer, target, "A")] = (lora.rank, into)
            shapes[lora_name(layer, target, "B")] = (out, lora.rank)
    return shapes


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
