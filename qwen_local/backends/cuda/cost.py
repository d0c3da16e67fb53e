"""Memory and speed of the PyTorch engine, estimated from shapes.

Values kept for the backward pass, per position and block (frozen weights, LoRA on every linear
layer; q = heads x head size, kv = the same of key-value heads, r = rank), all in the model's dtype:

| kept (see `fused.py`)                              | values           |
|----------------------------------------------------|------------------|
| inputs and outputs of the two norms                | 4 hidden         |
| queries, keys, values after rotation               | q + 2 kv         |
| queries and keys before their norm (Qwen3)         | q + kv           |
| attention output, once for each row, once joined   | 2 q              |
| gate, up and their product                         | 3 intermediate   |
| low-rank vector of every target                    | r x targets      |
| dropout: each target's dropped input and its mask, | input size       |
| instead of the inputs that targets share           |                  |

A mask entry has one byte on a GPU and the width of the dtype on a CPU. With gradient checkpointing:
one hidden vector per block and a single block in full.

Compared with what PyTorch keeps (`tests/backends/test_kept_tensors.py`), and as a whole with the
peaks of real runs (`tests/training/test_plan_accuracy.py`, `benchmarks/plan_accuracy.py`).
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from qwen_local.backends.base import Setup
from qwen_local.backends.cuda.constants import HEAD_CHUNK, flash_head, recorded_size
from qwen_local.backends.machine import BFLOAT16_SINCE, Capability, Device
from qwen_local.backends.memory import (
    BYTES,
    Memory,
    Workload,
    dropped_inputs,
    frozen_bytes,
    layer_sizes,
    quantized_bits,
)

PUBLISHED_WIDTH = 2
"""Bytes of a weight in the files: Qwen publishes bfloat16."""

MODULES = {"bitsandbytes": 115 << 20, "peft": 50 << 20}
"""Imported beside PyTorch, each with all that it imports (measured on Linux)."""

FIRST_STEP = 35 << 20
"""Threads, kernels, and modules that are imported when they are first used (measured on Linux)."""

GPU_CONTEXT = 500 << 20
"""Bytes that a process takes on a GPU before its first array."""

FAVORITE: dict[Device, int] = {"cpu": 1024, "gpu": 8192}
"""Positions of one forward pass where memory does not matter. A larger product gains nothing on a
CPU."""

KEPT_BY_MALLOC = 0.15
"""On a CPU PyTorch takes its arrays from the C library, which keeps freed blocks of less than
32 MiB. The widths of one pass hardly fill the holes of another: about this share of what a pass
allocates stays (measured with glibc; its `M_MMAP_THRESHOLD` at 128 KiB brings it to nothing)."""

KEPT_BY_CUDA = 0.1
"""The same share for PyTorch's allocator on a GPU, whose blocks are split and joined again."""

FLOPS: dict[Capability, float] = {
    (8, 0): 312e12,  # A100, A800
    (8, 6): 71e12,  # RTX 3090
    (8, 9): 165e12,  # RTX 4090
    (9, 0): 989e12,  # H100, H200
    (10, 0): 2250e12,  # B200
    (12, 0): 210e12,  # RTX 5090
}
"""16-bit operations a second of the fastest cards, by their compute capability
(NVIDIA's white papers, without sparsity)."""
SUSTAINED = 0.6
"""Share of it that products of a model's sizes reach."""
SECONDS_TO_LAUNCH = 1.04e-3
"""Of a block, forward and backward: 104 launches (counted) of 10 microseconds, Python included."""
MOST_PADDING = 1.25
"""Positions computed for one that counts where shapes must be few at most (see `inputs.padded`)."""

SMALL_MODEL = 2 * 10**9
"""Parameters of a model that `NF4_IS_SLOW` holds for; 1.5B and 1.7B have up to 1.8 billion."""

NF4_IS_SLOW = (
    " (on NVIDIA cards NF4 slows models up to about 1.5B by some 40 %, bitsandbytes issue 1851)"
)


class TorchCost:
    """The contract of `qwen_local.backends.cost.Cost` on PyTorch."""

    def estimate(self, setup: Setup, workload: Workload) -> Memory:
        """See `Cost.estimate`."""
        packed = packed_positions(workload, setup.micro_batch_tokens)
        if setup.cuda_graphs:
            packed = recorded_size(packed)
        activations = packed * _kept(setup)
        evaluated = min(setup.micro_batch_tokens, workload.eval_tokens)
        activations = max(activations, evaluated * _block(setup))  # nothing is kept for later
        head = _head(setup, math.ceil(workload.supervised * max(packed, evaluated)))
        if setup.device == "gpu":
            cache = round(KEPT_BY_CUDA * (activations + head))
            if setup.cuda_graphs:
                # All of them share memory of their own; the first is checked beside copies of the
                # gradients.
                cache += activations + head + 8 * workload.trainable
        else:  # checkpointed or not, a pass allocates the same
            cache = round(
                KEPT_BY_MALLOC * (setup.model.architecture.layers * _block(setup) * packed)
            )
        return Memory(
            libraries=workload.libraries,
            weights=frozen_bytes(setup) + _dequantized(setup),
            loading=_loading(setup),
            adapter=(4 + _copy_width(setup)) * workload.trainable,
            optimizer=3 * 4 * workload.trainable,
            activations=activations,
            head=head,
            cache=cache,
            available=workload.available,
            device=setup.device,
        )

    def library_bytes(self, device: Device, *, resident: int, imported: Collection[str]) -> int:
        """See `Cost.library_bytes`."""
        if device == "gpu":
            return GPU_CONTEXT
        to_come = sum(size for name, size in MODULES.items() if name not in imported)
        return resident + to_come + FIRST_STEP

    def favorite_tokens(self, device: Device) -> int:
        """See `Cost.favorite_tokens`."""
        return FAVORITE[device]

    def compiles(self, device: Device) -> bool:
        """See `Cost.compiles`."""
        return False

    def can_record(self, setup: Setup, capability: Capability | None) -> bool:
        """See `Cost.can_record`."""
        if setup.device != "gpu" or capability is None:
            return False
        if setup.dtype != "bfloat16":  # attention goes row by row in float32; in float16 the row of
            return False  # padding may overflow, and 0 times infinity is no number
        if not flash_head(setup.model.architecture.head_dim):
            return False
        assert setup.lora is not None
        # A block that is computed twice reads the state of the generator in between.
        return capability >= BFLOAT16_SINCE and not (
            setup.gradient_checkpointing and setup.lora.dropout
        )

    def launch_bound(self, setup: Setup, workload: Workload, capability: Capability | None) -> bool:
        """See `Cost.launch_bound`."""
        if not self.can_record(setup, capability):
            return False
        assert capability is not None
        shape = setup.model.architecture
        passes = 3 if setup.gradient_checkpointing else 2
        a_step = workload.batch_size * float(workload.lengths_R.mean())
        positions = min(setup.micro_batch_tokens, a_step)
        weights = shape.layers * sum(layer_sizes(shape))
        head = shape.vocabulary * shape.hidden * workload.supervised
        operations = 2 * positions * (passes * weights + 2 * head)
        known = [flops for since, flops in FLOPS.items() if since <= capability]
        computing = operations / (SUSTAINED * known[-1])
        return MOST_PADDING * computing < SECONDS_TO_LAUNCH * shape.layers * passes / 2

    def slow_quantization(self, setup: Setup) -> str:
        """See `Cost.slow_quantization`."""
        nf4 = setup.device == "gpu" and setup.quantization == "4bit"
        small = setup.model.architecture.parameters() <= SMALL_MODEL
        return NF4_IS_SLOW if nf4 and small else ""


def _copy_width(setup: Setup) -> int:
    """Bytes of a parameter's copy in the computing dtype."""
    return 0 if setup.dtype == "float32" else BYTES[setup.dtype]


def packed_positions(workload: Workload, budget: int) -> int:
    """Positions of the largest micro-batch: the longest rows of a step together, or the budget.

    Args:
        workload: for its rows.
        budget: positions of a micro-batch; a longer row is alone.
    """
    longest_R = np.sort(workload.lengths_R)[::-1][: workload.batch_size]
    return int(max(longest_R[0], min(budget, longest_R.sum())))


def _kept(setup: Setup) -> int:
    """Bytes that all blocks keep for each position."""
    shape, width = setup.model.architecture, BYTES[setup.dtype]
    kept = shape.layers * _block(setup)
    if setup.gradient_checkpointing:
        kept = shape.layers * shape.hidden * width + _block(setup)
    return kept


def _block(setup: Setup) -> int:
    """Bytes that a block keeps for each position."""
    shape, lora, width = setup.model.architecture, setup.lora, BYTES[setup.dtype]
    assert lora is not None
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    low_rank = lora.rank * len(lora.target_names)
    values = 4 * shape.hidden + 3 * queries + 2 * keys + 3 * shape.intermediate + low_rank
    if shape.blocks[0].kind == "qk_norm_attention":
        values += queries + keys
    own, shared = dropped_inputs(setup)
    mask = width if setup.device == "cpu" else 1
    return width * (values - shared) + (width + mask) * own


def _head(setup: Setup, supervised: int) -> int:
    """Bytes of one chunk's logits, which everything else overwrites; in 16 bits also a copy."""
    chunk = min(HEAD_CHUNK[setup.device], supervised)
    each = 4 + (0 if setup.dtype == "float32" else 2)
    return each * chunk * setup.model.architecture.vocabulary


def _dequantized(setup: Setup) -> int:
    """Bytes of the largest layer in the computing dtype, which bitsandbytes multiplies by."""
    shape = setup.model.architecture
    if quantized_bits(setup) is None or (shape.stored and shape.stored.scheme == "affine"):
        return 0
    return max(layer_sizes(shape)) * BYTES[setup.dtype]


def _loading(setup: Setup) -> int:
    """Bytes of the files that are mapped while PyTorch makes its own arrays from them.

    In the dtype of the files it uses the map itself, and a GPU gets the finished arrays.
    """
    shape = setup.model.architecture
    if setup.device == "gpu" or shape.stored is not None:
        return 0
    converted = setup.quantization != "none" or BYTES[setup.dtype] != PUBLISHED_WIDTH
    return PUBLISHED_WIDTH * shape.parameters() if converted else 0
