"""Memory and speed of the MLX engine, estimated from shapes.

Values kept for the backward pass, per position and block (frozen weights, LoRA on every linear
layer; q = heads x head size, kv = the same of key-value heads, r = rank):

| kept                                                    | values           | dtype    |
|---------------------------------------------------------|------------------|----------|
| inputs and outputs of the two norms                     | 4 hidden         | float32  |
| low-rank vector of every target                         | r x targets      | float32  |
| queries, keys, values after rotation                    | q + 2 kv         | model's  |
| attention output, and what enters the rotation          | 3 q + 2 kv       | model's  |
| gate, up, their product, the activation and its sigmoid | 5 intermediate   | model's  |
| attention weights: a square of the row's width          | heads x width    | model's  |
| dropout: each target's dropped input and a mask of      | input size       | model's, |
| one byte, instead of the inputs that targets share      |                  | uint8    |

MLX computes ahead: one more block is alive during the backward pass, and `SCORES_AT_ONCE` squares.
With gradient checkpointing: one hidden vector per block, and three blocks in full with the
attention weights of one.

Compared with peaks of real runs on CPUs (`tests/training/test_plan_accuracy.py`,
`benchmarks/plan_accuracy.py`). The figures for a GPU follow from the same reasons and are not yet
measured on Metal.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from qwen_local.backends.base import Setup
from qwen_local.backends.machine import Capability, Device
from qwen_local.backends.memory import BYTES, Memory, Workload, dropped_inputs, frozen_bytes
from qwen_local.backends.mlx.constants import CACHE_BYTES, HEAD_CHUNK

MODULES = {"mlx_lm": 30 << 20}
"""Imported beside MLX, each with all that it imports (measured on Linux)."""

FIRST_STEP = 20 << 20
"""Threads, kernels, and modules that are imported when they are first used (measured on Linux)."""

GPU_CONTEXT = 0
"""Metal's working set counts arrays only."""

FAVORITE: dict[Device, int] = {"cpu": 512, "gpu": 2048}
"""Positions of one forward pass where memory does not matter. A larger product gains nothing on a
CPU. On Metal macOS may end a process whose work keeps the display waiting (MLX issue 3267)."""

SCORES_AT_ONCE = 3
"""Squares of a head's attention weights beside those that are kept: the scores, and the gradients
of both."""

MASK_BYTES = 1
"""Bytes of an entry of a dropout mask."""

LOGITS_ALIVE = 4
"""Arrays of a chunk's size in the head, from the first chunk on. (MLX's own count of a peak is up
to three times that on a CPU, where it allocates ahead of computing; what is not written takes
nothing.)"""


class MlxCost:
    """The contract of `qwen_local.backends.cost.Cost` on MLX."""

    def estimate(self, setup: Setup, workload: Workload) -> Memory:
        """See `Cost.estimate`."""
        rows_S, width_S = micro_batch_shapes(workload, setup.micro_batch_tokens)
        activations = int(_activations(setup, rows_S, width_S).max())
        evaluated = min(setup.micro_batch_tokens, workload.eval_tokens)
        activations = max(activations, evaluated * _block(setup))  # nothing is kept for later
        positions = max(int((rows_S * width_S).max()), evaluated)
        head = _head(setup, math.ceil(workload.supervised * positions))
        # Buffers of one size are used again; another width has other sizes.
        sizes = min(workload.steps, len(width_S))
        return Memory(
            libraries=workload.libraries,
            weights=frozen_bytes(setup),
            loading=0,  # MLX reads a tensor when it is needed
            adapter=4 * workload.trainable,
            optimizer=3 * 4 * workload.trainable,
            activations=activations,
            head=head,
            cache=min(CACHE_BYTES[setup.device], sizes * (activations + head)),
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
        return device == "gpu"

    def can_record(self, setup: Setup, capability: Capability | None) -> bool:
        """See `Cost.can_record`."""
        return False

    def launch_bound(self, setup: Setup, workload: Workload, capability: Capability | None) -> bool:
        """See `Cost.launch_bound`."""
        return False

    def slow_quantization(self, setup: Setup) -> str:
        """See `Cost.slow_quantization`."""
        return ""


def micro_batch_shapes(workload: Workload, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows [S], width [S]) of the micro-batches among which the largest is.

    One for every width that rows of the data have, as `rows.planner.micro_batches` makes it in the
    worst order: the rows that are no longer than the width, as many as the budget and an optimizer
    step allow.

    Args:
        workload: for its rows.
        budget: positions of a micro-batch; a longer row is alone.
    """
    width_S, count_S = np.unique(workload.lengths_R, return_counts=True)
    rows_S = np.minimum(np.maximum(1, budget // width_S), workload.batch_size)
    return np.minimum(rows_S, np.cumsum(count_S)), width_S


def _activations(setup: Setup, rows_S: np.ndarray, width_S: np.ndarray) -> np.ndarray:
    """Bytes alive in a forward and backward pass over each of these micro-batches, [S]."""
    shape, width = setup.model.architecture, BYTES[setup.dtype]
    block, layers, recompute = _block(setup), shape.layers, setup.gradient_checkpointing
    kept = layers * shape.hidden * width + block if recompute else layers * block
    kept += (2 if recompute else 1) * block  # the gradients of a block beside the next one's
    squares = SCORES_AT_ONCE + (1 if recompute else layers)
    kept_SW = squares * shape.heads * width * width_S
    return np.asarray(rows_S * width_S * (kept + kept_SW))


def _block(setup: Setup) -> int:
    """Bytes that a block keeps for each position, without the attention weights."""
    shape, lora, width = setup.model.architecture, setup.lora, BYTES[setup.dtype]
    assert lora is not None
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    in_float32 = 4 * shape.hidden + lora.rank * len(lora.target_names)
    in_dtype = 4 * queries + 4 * keys + 5 * shape.intermediate
    own, shared = dropped_inputs(setup)
    return 4 * in_float32 + width * (in_dtype - shared) + (width + MASK_BYTES) * own


def _head(setup: Setup, supervised: int) -> int:
    """Bytes of one chunk's logits and what is computed from them."""
    chunk = min(HEAD_CHUNK[setup.device], supervised)
    return LOGITS_ALIVE * 4 * chunk * setup.model.architecture.vocabulary
