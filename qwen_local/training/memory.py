"""How much memory a run is expected to need, by part. An estimate from shapes; nothing is loaded.

Kept for the backward pass, per position and block (Qwen2 and Qwen3, frozen weights, LoRA on every
linear layer): the two norms' inputs and outputs (4 hidden); queries, keys and values after rotation
(q, 2 kv), on Qwen3 before their norm, too (q, kv); the attention's output, twice where rows are
packed (2 q); gate, up and their product (3 intermediate); and one rank-wide vector for every
target. With dropout the linear layers keep each target's own dropped input and its mask instead of
their inputs. That is PyTorch (`backends/cuda/fused.py`); MLX keeps q and 2 kv more, the activation
and the sigmoid (2 intermediate), the attention's weights, a square of the row's width for each
head, and the norms' arrays in float32. With gradient checkpointing, one hidden vector per block and
a single block in full.

Checked against what PyTorch keeps (`tests/backends/test_kept_tensors.py`), and as a whole against
the peaks of real runs (`tests/training/test_plan_accuracy.py`, `benchmarks/plan_accuracy.py`). What
holds on a GPU under MLX follows from the same reasons and is not yet measured on Metal.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qwen_local.backends.base import (
    HEAD_CHUNK,
    HEAD_CHUNK_GPU,
    HEAD_CHUNK_MLX,
    MLX_CACHE_BYTES,
    QUANTIZED_BITS,
    Setup,
)
from qwen_local.backends.machine import Device, Engine
from qwen_local.backends.quantization import MLX_GROUP
from qwen_local.job.schema import LoraSpec, Quantization
from qwen_local.models.architecture import Architecture

USABLE = 0.9
"""Of what there is. The rest is left for what the estimate does not know of."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

PUBLISHED_WIDTH = 2
"""Bytes of a weight in the files: Qwen publishes bfloat16."""

MODULES = {"cuda": {"bitsandbytes": 115 << 20, "peft": 50 << 20}, "mlx": {"mlx_lm": 30 << 20}}
"""What an engine imports beside its framework, with all that they import (measured on Linux)."""

FIRST_STEP = {"cuda": 35 << 20, "mlx": 20 << 20}
"""Threads, kernels, and modules that are imported when they are first used (likewise)."""

GPU_CONTEXT = {"cuda": 500 << 20, "mlx": 0}
"""What a process holds on a GPU before its first array; Metal's working set counts arrays only."""

KEPT_BY_MALLOC = 0.15
"""PyTorch on a CPU takes its arrays from the C library, which keeps freed blocks of less than
32 MiB. The widths of one pass hardly fill the holes of another: about so much of what a pass
allocates stays (measured with glibc; its `M_MMAP_THRESHOLD` at 128 KiB brings it to nothing)."""

KEPT_BY_CUDA = 0.1
"""The same of PyTorch's allocator on a GPU, whose blocks are cut and joined again."""

SCORES_AT_ONCE = 3
"""Squares of a head's attention weights that MLX holds beside those that it keeps: the scores, and
the gradients of both."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Workload:
    """What memory depends on beside the engine's setup."""

    engine: Engine
    trainable: int
    """Adapter parameters."""
    lengths_R: np.ndarray
    """int [R]: positions of every row to train on, at least one row."""
    eval_tokens: int
    """Positions of all rows to evaluate on."""
    supervised: float
    """Share of the positions that is trained."""
    batch_size: int
    """Rows of an optimizer step."""
    steps: int
    libraries: int
    """Bytes of the process before a model is loaded; on a GPU what the process takes of that."""
    available: int
    """Bytes of the device."""


def library_bytes(
    engine: Engine, device: Device, *, resident: int, imported: Collection[str]
) -> int:
    """`Workload.libraries`.

    Args:
        engine: which one.
        device: where it computes.
        resident: of this process, which has imported the framework and read the data.
        imported: the modules of the process.
    """
    if device == "gpu":
        return GPU_CONTEXT[engine]
    to_come = sum(size for name, size in MODULES[engine].items() if name not in imported)
    return resident + to_come + FIRST_STEP[engine]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes by part."""

    libraries: int
    """Of the process before a model is loaded; on a GPU what the process takes of that."""
    weights: int
    """The frozen model."""
    loading: int
    """Beside the weights while they are read; gone before the first step."""
    adapter: int
    """float32 arrays."""
    optimizer: int
    """Their gradients and AdamW's two moments, float32."""
    activations: int
    """Of the largest micro-batch."""
    head: int
    """float32 logits of one chunk, and what is computed from them."""
    cache: int
    """Freed, and kept by the allocator."""
    available: int
    """Of the device: memory of the GPU, or of the machine."""
    device: Device

    @property
    def total(self) -> int:
        """All parts together, at the moment at which they need most."""
        training = self.adapter + self.optimizer + self.activations + self.head + self.cache
        return self.libraries + self.weights + max(self.loading, training)

    @property
    def peak(self) -> int:
        """What `peak_memory_bytes` of the run should come to.

        On a GPU the engines count their arrays alone.
        """
        return self.total - (self.libraries + self.cache if self.device == "gpu" else 0)

    @property
    def fits(self) -> bool:
        """Whether the parts together leave a tenth of what there is."""
        return self.total <= USABLE * self.available

    def to_json(self) -> dict[str, Any]:
        """Parts, total, the expected `peak_memory_bytes`, and whether it fits."""
        return {**asdict(self), "total": self.total, "peak": self.peak, "fits": self.fits}


def estimate_memory(setup: Setup, workload: Workload) -> Memory:
    """The expected need of a run."""
    shape, engine = setup.model.architecture, workload.engine
    rows_S, width_S = micro_batch_shapes(workload, setup.micro_batch_tokens)
    activations = int(_activations(setup, engine, rows_S, width_S).max())
    evaluated = min(setup.micro_batch_tokens, workload.eval_tokens)
    activations = max(activations, evaluated * _block(setup, engine))  # nothing is kept for later
    positions = max(int((rows_S * width_S).max()), evaluated)
    head = _head(setup, engine, math.ceil(workload.supervised * positions))
    if engine == "mlx":  # buffers of one size are used again; another width has other sizes
        sizes = min(workload.steps, len(width_S))
        cache = min(MLX_CACHE_BYTES[setup.device], sizes * (activations + head))
    elif setup.device == "gpu":
        cache = round(KEPT_BY_CUDA * (activations + head))
    else:  # checkpointed or not, a pass allocates the same
        whole = shape.layers * _block(setup, engine) * int((rows_S * width_S).max())
        cache = round(KEPT_BY_MALLOC * whole)
    return Memory(
        libraries=workload.libraries,
        weights=_weights(setup, engine),
        loading=_loading(setup, engine),
        adapter=4 * workload.trainable,
        optimizer=3 * 4 * workload.trainable,
        activations=activations,
        head=head,
        cache=cache,
        available=workload.available,
        device=setup.device,
    )


def micro_batch_shapes(workload: Workload, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows [S], width [S]) of the micro-batches among which the largest is.

    On MLX one for every width that rows of the data have, as `datasets.plan.micro_batches` makes it
    in the worst order: the rows that are no longer than the width, as many as the budget and an
    optimizer step allow. PyTorch packs its rows: there it is one row, as long as the longest of a
    step together or as the budget.

    Args:
        workload: for its rows.
        budget: positions of a micro-batch; a row that is longer is one of its own.
    """
    if workload.engine == "cuda":
        longest_R = np.sort(workload.lengths_R)[::-1][: workload.batch_size]
        packed = max(longest_R[0], min(budget, longest_R.sum()))
        return np.ones(1, np.int64), np.array([packed])
    width_S, count_S = np.unique(workload.lengths_R, return_counts=True)
    rows_S = np.minimum(np.maximum(1, budget // width_S), workload.batch_size)
    return np.minimum(rows_S, np.cumsum(count_S)), width_S


def _activations(
    setup: Setup, engine: Engine, rows_S: np.ndarray, width_S: np.ndarray
) -> np.ndarray:
    """Bytes kept and under way in a forward and backward pass over these micro-batches [S]."""
    shape, width = setup.model.architecture, BYTES[setup.dtype]
    block, layers, twice = _block(setup, engine), shape.layers, setup.gradient_checkpointing
    kept = layers * shape.hidden * width + block if twice else layers * block
    if engine == "mlx":  # it computes ahead: gradients of a block beside the next one's
        kept += (2 if twice else 1) * block
        squares = SCORES_AT_ONCE + (1 if twice else layers)
        kept_SW = squares * shape.heads * width * width_S
        return np.asarray(rows_S * width_S * (kept + kept_SW))
    if setup.quantization == "8bit":  # bitsandbytes keeps what goes into LLM.int8(), whatever else
        kept += layers * 2 * sum(into for _, into in shape.linear_shapes().values())
    return np.asarray(rows_S * width_S * kept)


def _block(setup: Setup, engine: Engine) -> int:
    """Bytes that a block keeps for the backward pass, for each position."""
    assert setup.lora is not None
    width = BYTES[setup.dtype]
    mask = width if engine == "cuda" and setup.device == "cpu" else 1  # of dropout, in bytes
    return _kept_per_position(setup.model.architecture, setup.lora, width, mask, engine)


def _kept_per_position(
    shape: Architecture, lora: LoraSpec, width: int, mask: int, engine: Engine
) -> int:
    """See `_block`; attention weights are not among it."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    low_rank = lora.rank * len(lora.target_names)
    linear = shape.linear_shapes()
    dropped = sum(linear[name][1] for name in lora.target_names) if lora.dropout else 0
    inputs = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    shared = [group[0] for group in inputs if set(group) & set(lora.target_names)]
    instead = sum(linear[name][1] for name in shared) if lora.dropout else 0
    everything = 4 * shape.hidden + 3 * queries + 2 * keys + 3 * shape.intermediate + low_rank
    if engine == "cuda":
        if shape.blocks[0].kind == "qk_norm_attention":
            everything += queries + keys
        return width * (everything - instead) + (width + mask) * dropped
    everything += queries + 2 * keys + 2 * shape.intermediate
    in_float32 = 4 * shape.hidden + low_rank
    kept = 4 * in_float32 + width * (everything - in_float32)
    return kept + (width + mask) * dropped - width * instead


def _head(setup: Setup, engine: Engine, supervised: int) -> int:
    """Bytes of the logits of a chunk and what is computed from them.

    PyTorch: the logits, in place of which everything else is computed, and in 16 bits a copy of
    them. MLX: four from the first. (Its own count of a peak is up to three times that on a CPU,
    where it allocates ahead of computing; what is not written takes nothing.)
    """
    on_cpu = HEAD_CHUNK_MLX if engine == "mlx" else HEAD_CHUNK
    chunk = HEAD_CHUNK_GPU if setup.device == "gpu" else on_cpu
    each = 4 * 4 if engine == "mlx" else 4 + (0 if setup.dtype == "float32" else 2)
    return each * min(chunk, supervised) * setup.model.architecture.vocabulary


def _loading(setup: Setup, engine: Engine) -> int:
    """Bytes of the files that are mapped while PyTorch makes its own arrays from them.

    In the dtype of the files it uses the map itself. MLX reads a tensor when it is needed, and a
    GPU gets what is made.
    """
    shape = setup.model.architecture
    if engine == "mlx" or setup.device == "gpu" or shape.stored is not None:
        return 0
    made = setup.quantization != "none" or BYTES[setup.dtype] != PUBLISHED_WIDTH
    return PUBLISHED_WIDTH * shape.parameters() if made else 0


def _weights(setup: Setup, engine: Engine) -> int:
    """Bytes of the frozen model."""
    shape, width = setup.model.architecture, BYTES[setup.dtype]
    linear = [math.prod(pair) for pair in shape.linear_shapes().values()]
    # bitsandbytes multiplies by a whole layer in the computing dtype, MLX by the codes.
    dequantized = max(linear) * width if engine == "cuda" else 0
    if shape.stored is not None and shape.stored.scheme == "affine":  # embeddings and head, too
        each = shape.stored.bits + 16 * width / shape.stored.group
        return round(shape.parameters() * each / 8)
    bits = _bits(shape, setup.quantization)
    if bits is None:
        return shape.parameters() * width
    quantized = shape.layers * sum(linear)
    kept = (shape.parameters() - quantized) * width
    # As on MLX, with a scale and a bias of each group in the computing dtype. NF4 with double
    # quantization has 4.127 bits (QLoRA, section 3), LLM.int8() hardly more than 8.
    return round(quantized * (bits + 16 * width / MLX_GROUP) / 8) + kept + dequantized


def _bits(shape: Architecture, quantization: Quantization) -> int | None:
    return QUANTIZED_BITS.get(quantization) if shape.stored is None else shape.stored.bits
