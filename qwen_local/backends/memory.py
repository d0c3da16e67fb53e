"""The memory of a run by part, and the pieces of its estimate that the engines share."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qwen_local.backends.base import Setup
from qwen_local.backends.machine import Device, Engine
from qwen_local.backends.mlx.constants import GROUP
from qwen_local.backends.weights import QUANTIZED_BITS
from qwen_local.models.architecture import Architecture

USABLE = 0.9
"""Share of the memory that a plan may use; the rest is for what the estimate does not know of."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Workload:
    """Quantities that memory depends on besides the setup of the engine."""

    engine: Engine
    trainable: int
    """Adapter parameters."""
    lengths_R: np.ndarray
    """int [R]: positions of every row to train on, at least one row."""
    eval_tokens: int
    """Positions of all rows to evaluate on."""
    supervised: float
    """Share of the positions that count in the loss."""
    batch_size: int
    """Rows of an optimizer step."""
    steps: int
    libraries: int
    """Bytes of the process before a model is loaded; on a GPU, bytes that the process takes
    there."""
    available: int
    """Bytes of the device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes by part."""

    libraries: int
    """The process before a model is loaded; on a GPU, what the process takes there."""
    weights: int
    """The frozen model."""
    loading: int
    """Beside the weights while they are read; freed before the first step."""
    adapter: int
    """float32 arrays."""
    optimizer: int
    """Gradients and AdamW's two moments of the adapter, float32."""
    activations: int
    """Bytes of the largest micro-batch."""
    head: int
    """float32 logits of one chunk, and what is computed from them."""
    cache: int
    """Freed arrays that the allocator keeps."""
    available: int
    """Memory of the GPU, or of the machine."""
    device: Device

    @property
    def total(self) -> int:
        """All parts together, at the moment that needs most."""
        training = self.adapter + self.optimizer + self.activations + self.head + self.cache
        return self.libraries + self.weights + max(self.loading, training)

    @property
    def peak(self) -> int:
        """Expected `peak_memory_bytes` of the run; on a GPU the engines count their arrays only."""
        return self.total - (self.libraries + self.cache if self.device == "gpu" else 0)

    @property
    def fits(self) -> bool:
        """True if a tenth of the memory is left."""
        return self.total <= USABLE * self.available

    def to_json(self) -> dict[str, Any]:
        """Return parts, total, the expected `peak_memory_bytes`, and whether it fits."""
        return {**asdict(self), "total": self.total, "peak": self.peak, "fits": self.fits}


def frozen_bytes(setup: Setup) -> int:
    """Return the bytes of the frozen model: floats, and quantized layers with their scales."""
    shape, width = setup.model.architecture, BYTES[setup.dtype]
    if shape.stored is not None and shape.stored.scheme == "affine":  # embeddings and head as well
        each = shape.stored.bits + 16 * width / shape.stored.group
        return round(shape.parameters() * each / 8)
    bits = quantized_bits(setup)
    if bits is None:
        return shape.parameters() * width
    quantized = shape.layers * sum(layer_sizes(shape))
    floats = (shape.parameters() - quantized) * width
    # As on MLX, with a scale and a bias of each group in the computing dtype. NF4 with double
    # quantization has 4.127 bits (QLoRA, section 3), LLM.int8() hardly more than 8.
    return round(quantized * (bits + 16 * width / GROUP) / 8) + floats


def quantized_bits(setup: Setup) -> int | None:
    """Return the bits of a weight in the blocks' linear layers; None where they are floats."""
    stored = setup.model.architecture.stored
    return QUANTIZED_BITS.get(setup.quantization) if stored is None else stored.bits


def layer_sizes(shape: Architecture) -> list[int]:
    """Return the number of weights of each linear layer of a block."""
    return [math.prod(pair) for pair in shape.linear_shapes().values()]


def dropped_inputs(setup: Setup) -> tuple[int, int]:
    """Return input sizes of a block's adapted layers under dropout; (0, 0) without it.

    Returns:
        (sum over all adapted layers, each of which keeps its own dropped input; sum over the
        inputs that they share, which are then not kept).
    """
    lora = setup.lora
    assert lora is not None
    if not lora.dropout:
        return 0, 0
    linear = setup.model.architecture.linear_shapes()
    inputs = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    shared = [group[0] for group in inputs if set(group) & set(lora.target_names)]
    own = sum(linear[name][1] for name in lora.target_names)
    return own, sum(linear[name][1] for name in shared)
