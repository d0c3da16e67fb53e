"""How much memory a run is expected to need, by part. An estimate from shapes; nothing is loaded.

Kept for the backward pass, per padded position and block (Qwen2 and Qwen3, frozen weights, LoRA on
every linear layer): the two norms' inputs and outputs (4 hidden), queries before and after norm and
rotation and the attention's output (3 q), keys and values likewise (4 kv), gate, up, their
activation and product (4 intermediate), and one rank-wide vector for every target; with dropout
each target's own dropped input and its mask. Norms compute in float32 whatever the model is held
in. With gradient checkpointing, one hidden vector per block and a single block in full. Checked
against what PyTorch keeps (`tests/backends/test_kept_tensors.py`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from qwen_local.backends.base import HEAD_CHUNK, HEAD_CHUNK_GPU, QUANTISED_BITS, Setup
from qwen_local.backends.quantisation import MLX_GROUP
from qwen_local.job import LoraSpec, Quantization
from qwen_local.models.architecture import Architecture

MICRO_BATCH_TOKENS = {"cpu": 2048, "gpu": 8192}
"""Padded positions of one forward pass where memory does not matter. A bigger product gains nothing
on a CPU."""
DROPOUT_BYTES = 1.6
"""Of a dropped input beside itself: a byte of mask, and what goes with it (fitted)."""
SMALLEST_MICRO_BATCH = 256
USABLE = 0.9

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes by part."""

    weights: int
    adapter: int
    """float32 arrays, their gradients and AdamW's two moments."""
    activations: int
    """Of one micro-batch."""
    head: int
    """float32 logits of one chunk, and what is computed from them."""
    available: int
    """Of the device: memory of the GPU, or of the machine."""

    @property
    def total(self) -> int:
        """All parts together."""
        return self.weights + self.adapter + self.activations + self.head

    @property
    def fits(self) -> bool:
        """Whether the parts together stay below what there is."""
        return self.total < self.available

    def to_json(self) -> dict[str, Any]:
        """Parts, total, and whether it fits."""
        return {**asdict(self), "total": self.total, "fits": self.fits}


def fitting_micro_batch(setup: Setup, *, trainable: int, available: int) -> int:
    """`train.micro_batch_tokens: auto`: what the device likes best, halved until it should fit.

    A tenth of the memory is left for what the estimate does not know of; below 256 positions
    nothing is gained by going on.
    """
    size = MICRO_BATCH_TOKENS[setup.device]
    while size > SMALLEST_MICRO_BATCH:
        tried = replace(setup, micro_batch_tokens=size)
        need = estimate_memory(tried, trainable=trainable, longest=0, available=available).total
        if need <= USABLE * available:
            break
        size //= 2
    return size


def estimate_memory(setup: Setup, *, trainable: int, longest: int, available: int) -> Memory:
    """The expected need of a run.

    Args:
        setup: of the engine.
        trainable: adapter parameters.
        longest: positions of the longest row; it is a micro-batch of its own if it must be.
        available: bytes of the device.
    """
    shape, lora = setup.model.architecture, setup.lora
    assert lora is not None
    width = BYTES[setup.dtype]
    block = _kept_per_position(shape, lora, width)
    kept = shape.layers * block
    if setup.gradient_checkpointing:
        kept = shape.layers * shape.hidden * width + block
    if setup.quantization == "8bit":  # bitsandbytes keeps what goes into LLM.int8(), whatever else
        kept += shape.layers * 2 * sum(into for _, into in shape.linear_shapes().values())
    positions = max(setup.micro_batch_tokens, longest)
    chunk = HEAD_CHUNK_GPU if setup.device == "gpu" else HEAD_CHUNK
    return Memory(
        weights=_weights(shape, setup.quantization, width),
        adapter=4 * 4 * trainable,
        activations=positions * kept,
        head=3 * 4 * chunk * shape.vocabulary,
        available=available,
    )


def _weights(shape: Architecture, quantization: Quantization, width: int) -> int:
    """Bytes of the frozen model, with one layer in its computing dtype where it is quantised."""
    linear = [math.prod(pair) for pair in shape.linear_shapes().values()]
    if shape.stored is not None and shape.stored.scheme == "affine":  # embeddings and head, too
        each = shape.stored.bits + 16 * width / shape.stored.group
        return round(shape.parameters() * each / 8) + max(linear) * width
    bits = QUANTISED_BITS.get(quantization) if shape.stored is None else shape.stored.bits
    if bits is None:
        return shape.parameters() * width
    quantised = shape.layers * sum(linear)
    kept = (shape.parameters() - quantised) * width
    # As on MLX, with a scale and a bias of each group in the computing dtype. NF4 with double
    # quantisation has 4.127 bits (QLoRA, section 3), LLM.int8() hardly more than 8.
    return round(quantised * (bits + 16 * width / MLX_GROUP) / 8) + kept + max(linear) * width


def _kept_per_position(shape: Architecture, lora: LoraSpec, width: int) -> int:
    """Bytes that a block keeps for the backward pass, for each padded position."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    low_rank = lora.rank * len(lora.target_names)
    everything = 4 * shape.hidden + 3 * queries + 4 * keys + 4 * shape.intermediate + low_rank
    in_float32 = 4 * shape.hidden + low_rank
    if shape.model_type == "qwen3":
        in_float32 += 2 * (queries + keys)  # its queries and keys are normalised, too
    kept = 4 * in_float32 + width * (everything - in_float32)
    if lora.dropout:
        linear = shape.linear_shapes()
        dropped = sum(linear[name][1] for name in lora.target_names)
        kept += round((width + DROPOUT_BYTES) * dropped)
    return kept
