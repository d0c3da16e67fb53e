"""The estimate of memory: exact arithmetic on a model small enough to count by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from qwen_local.backends.base import Setup
from qwen_local.backends.cost import cost_of, estimate_memory
from qwen_local.backends.cuda import constants as cuda
from qwen_local.backends.cuda import cost as cuda_cost
from qwen_local.backends.cuda.cost import KEPT_BY_CUDA, KEPT_BY_MALLOC, packed_positions
from qwen_local.backends.machine import Capability
from qwen_local.backends.memory import Memory, Workload
from qwen_local.backends.mlx import constants as mlx
from qwen_local.backends.mlx.cost import micro_batch_shapes
from qwen_local.job.schema import LoraSpec
from qwen_local.models.architecture import Stored
from qwen_local.models.families.family import Sizes
from qwen_local.models.families.qwen2 import QWEN2 as QWEN2_FAMILY
from qwen_local.models.families.qwen3 import QWEN3
from qwen_local.models.published import PUBLISHED
from qwen_local.models.source import ModelFiles
from qwen_local.rows.planner import PACKED, PADDED, Layout, epoch_order, micro_batches

SIZES: dict[str, Any] = {
    "sizes": Sizes(hidden=10, intermediate=30, heads=4, kv_heads=2, head_dim=5),
    "layers": 3,
    "vocabulary": 100,
    "tied": True,
    "rope_theta": 1e6,
    "positions": 64,
}
SHAPE = QWEN3.architecture(**SIZES)
SETUP = Setup(
    model=ModelFiles(name="m", folder=Path(), commit=None, config={}, architecture=SHAPE),
    lora=LoraSpec(rank=2, targets=("q_proj", "v_proj"), dropout=0.0),
    device="cpu",
    dtype="float32",
    micro_batch_tokens=50,
)
WORKLOAD = Workload(
    engine="cuda",
    trainable=7,
    lengths_R=np.array([25] * 9),
    eval_tokens=0,
    supervised=0.5,
    batch_size=4,
    steps=5,
    libraries=1000,
    available=10**6,
)
MLX = replace(WORKLOAD, engine="mlx")
BLOCK = 4 * 10 + 4 * (4 * 5) + 3 * (2 * 5) + 3 * 30 + 2 * 2
"""Norms, queries (and the attention output), keys, values, the MLP, two low-rank vectors."""
MLX_BLOCK = BLOCK + 2 * 5 + 2 * 30
"""With the values once more, the activation of the gate and its sigmoid."""
QWEN2 = QWEN2_FAMILY.architecture(**SIZES)


def estimate(setup: Setup = SETUP, workload: Workload = WORKLOAD, **change: Any) -> Memory:
    return estimate_memory(replace(setup, **change), workload)


def test_every_part_is_the_product_of_its_shapes() -> None:
    memory = estimate()
    assert memory.libraries == 1000
    assert memory.weights == 4 * SHAPE.parameters()
    assert memory.loading == 2 * SHAPE.parameters()  # bfloat16 files, read into float32
    assert memory.adapter == 7 * 4
    assert memory.optimizer == 7 * 3 * 4  # gradients and two moments
    assert memory.activations == 50 * 3 * BLOCK * 4
    assert memory.head == 4 * 25 * 100  # of 50 positions half are trained: one chunk
    assert memory.cache == round(KEPT_BY_MALLOC * 50 * 3 * BLOCK * 4)
    assert memory.available == 10**6


def test_all_parts_together_are_needed_in_training_but_what_loading_takes() -> None:
    memory = estimate()
    training = 7 * 16 + memory.activations + memory.head + memory.cache
    assert memory.total == 1000 + memory.weights + training
    assert memory.peak == memory.total
    loading = replace(memory, loading=training + 1)
    assert loading.total == 1000 + memory.weights + training + 1


def test_on_a_gpu_the_peak_is_without_what_the_engines_do_not_count() -> None:
    memory = estimate(device="gpu")
    assert memory.cache == round(KEPT_BY_CUDA * (memory.activations + memory.head))
    assert memory.peak == memory.total - 1000 - memory.cache
    assert memory.loading == 0


def test_checkpointing_keeps_a_vector_a_block_and_one_block_whole() -> None:
    memory = estimate(gradient_checkpointing=True)
    assert memory.activations == 50 * (3 * 10 + BLOCK) * 4
    assert memory.cache == estimate().cache  # a pass allocates the same


def test_mlx_keeps_a_block_more_and_the_attention_s_weights() -> None:
    """The weights of 3 layers, and 3 more squares, for each of 4 heads."""
    rows, width = 2, 25
    position = 3 * MLX_BLOCK + MLX_BLOCK + (3 + 3) * 4 * width
    assert estimate(workload=MLX).activations == rows * width * position * 4


def test_mlx_checkpointed_has_three_blocks_whole_and_the_attention_of_one() -> None:
    position = 3 * 10 + MLX_BLOCK + 2 * MLX_BLOCK + (1 + 3) * 4 * 25
    memory = estimate(workload=MLX, gradient_checkpointing=True)
    assert memory.activations == 2 * 25 * position * 4


def test_mlx_keeps_what_it_frees_up_to_its_limit() -> None:
    """Every width has sizes of its own; there is one here, and it serves all steps."""
    memory = estimate(workload=MLX)
    assert memory.cache == memory.activations + memory.head < mlx.CACHE_BYTES["cpu"]
    widths = replace(MLX, lengths_R=np.arange(20, 25))
    five, two = estimate(workload=widths), estimate(workload=replace(widths, steps=2))
    assert five.cache == 5 * (five.activations + five.head)
    assert two.cache == 2 * (two.activations + two.head)
    large = replace(widths, lengths_R=np.arange(20_000, 20_005))
    assert estimate(workload=large).cache == mlx.CACHE_BYTES["cpu"]
    assert estimate(workload=large, device="gpu").cache == mlx.CACHE_BYTES["gpu"]


def test_queries_and_keys_of_qwen2_are_not_kept_as_they_were_before_a_norm() -> None:
    qwen2 = estimate(model=replace(SETUP.model, architecture=QWEN2))
    assert estimate().activations - qwen2.activations == 50 * 3 * (4 * 5 + 2 * 5) * 4


def test_packed_rows_are_one_as_long_as_those_of_a_step_or_the_budget() -> None:
    def largest(lengths: list[int]) -> int:
        return packed_positions(replace(WORKLOAD, lengths_R=np.array(lengths)), 50)

    assert largest([3, 3, 3, 3, 3, 3]) == 12  # a step has four
    assert largest([20, 20, 20, 3]) == 50
    assert largest([20, 70, 3]) == 70  # alone


def test_the_largest_micro_batch_is_bounded_by_rows_step_and_budget() -> None:
    workload = replace(MLX, lengths_R=np.array([3, 3, 3, 3, 3, 9, 40, 70]))
    rows_S, width_S = micro_batch_shapes(workload, 50)
    assert width_S.tolist() == [3, 9, 40, 70]
    assert rows_S.tolist() == [4, 4, 1, 1]  # a step has four; one of 40 fits; 70 is alone
    scarce = replace(workload, lengths_R=np.array([3, 9]))
    assert micro_batch_shapes(scarce, 50)[0].tolist() == [1, 2]


@pytest.mark.parametrize("budget", [30, 100, 1000])
@pytest.mark.parametrize("layout", [PACKED, PADDED])
def test_no_micro_batch_of_a_run_is_larger_than_the_largest(layout: Layout, budget: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 97)
    workload = replace(WORKLOAD, lengths_R=lengths)
    rows_S, width_S = micro_batch_shapes(workload, budget)
    largest = int((rows_S * width_S).max())
    if layout.packed:
        largest = packed_positions(workload, budget)
    met = 0
    for epoch in range(20):
        order = epoch_order(97, seed=0, epoch=epoch)
        for at in range(0, 97, 4):
            step = lengths[order[at : at + 4]]
            groups = micro_batches(step.tolist(), budget=budget, layout=layout)
            met = max(met, *(layout.positions(step[g]) for g in groups))
    assert 0.8 * largest <= met <= largest


def test_a_row_beyond_the_budget_is_a_micro_batch_of_its_own() -> None:
    long = replace(WORKLOAD, lengths_R=np.array([60, 20]))
    assert estimate(workload=long).activations == 60 * 3 * BLOCK * 4


def test_short_rows_need_less_than_the_budget() -> None:
    short = replace(WORKLOAD, lengths_R=np.array([5] * 9))
    assert estimate(workload=short).activations == 4 * 5 * 3 * BLOCK * 4


def test_rows_to_evaluate_on_fill_the_budget_and_keep_one_block() -> None:
    """A step has one short row; an evaluation takes as many as the budget holds."""
    one = replace(WORKLOAD, lengths_R=np.array([4]), batch_size=1, supervised=1.0)
    memory = estimate(workload=replace(one, eval_tokens=1000))
    assert memory.activations == 50 * BLOCK * 4
    assert memory.head == 4 * 50 * 100


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_halves_the_model_and_copies_the_adapter(
    dtype: Literal["bfloat16", "float16"],
) -> None:
    whole, half = estimate(), estimate(dtype=dtype)
    assert 2 * half.weights == whole.weights
    assert 2 * half.activations == whole.activations
    assert half.adapter == 1.5 * whole.adapter  # float32 all the same, and a copy in 16 bits
    assert half.head == 1.5 * whole.head  # likewise
    whole, half = estimate(workload=MLX), estimate(workload=MLX, dtype=dtype)
    squares = 2 * 25 * (3 + 3) * 4 * 25 * 4
    in_float32 = 2 * 25 * (3 + 1) * (4 * 10 + 2 * 2) * 4  # the norms, and the low-rank vectors
    assert 2 * (half.activations - in_float32 - squares // 2) == (
        whole.activations - in_float32 - squares
    )
    assert half.head == whole.head


LINEAR = sum(out * into for out, into in SHAPE.linear_shapes().values())
"""Weights of the linear layers of a block."""
LARGEST = 10 * 30


@pytest.mark.parametrize(("quantization", "bits"), [("4bit", 4), ("8bit", 8)])
@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_quantized_layers_take_their_bits_and_their_groups_scales(
    quantization: Literal["4bit", "8bit"],
    bits: int,
    dtype: Literal["float32", "bfloat16"],
    width: int,
) -> None:
    """A scale and a bias for 64 weights, the rest of the model whole, and one layer dequantized."""
    quantized = 3 * LINEAR
    whole = (SHAPE.parameters() - quantized) * width
    expected = round(quantized * (bits + 2 * 8 * width / 64) / 8) + whole + LARGEST * width
    assert estimate(quantization=quantization, dtype=dtype).weights == expected
    scheme: Literal["nf4", "int8"] = "nf4" if bits == 4 else "int8"
    stored = replace(SHAPE, stored=Stored(scheme=scheme, bits=bits, group=64))
    model = replace(SETUP.model, architecture=stored)
    assert estimate(model=model, dtype=dtype).weights == expected


def test_a_model_that_mlx_quantized_has_quantized_embeddings_too() -> None:
    stored = replace(SHAPE, stored=Stored(scheme="affine", bits=4, group=32))
    memory = estimate(workload=MLX, model=replace(SETUP.model, architecture=stored))
    assert memory.weights == round(SHAPE.parameters() * (4 + 2 * 32 / 32) / 8)


def test_mlx_multiplies_by_the_codes_and_pytorch_by_a_layer_made_of_them() -> None:
    there, here = estimate(quantization="4bit"), estimate(workload=MLX, quantization="4bit")
    assert there.weights - here.weights == LARGEST * 4


@pytest.mark.parametrize("workload", [WORKLOAD, MLX])
def test_quantized_layers_keep_what_others_keep(workload: Workload) -> None:
    for quantization in ("4bit", "8bit"):
        held = estimate(workload=workload, quantization=quantization)
        assert held.activations == estimate(workload=workload).activations


DROPPING = replace(SETUP, lora=LoraSpec(rank=2, targets=("q_proj", "v_proj"), dropout=0.1))


def test_dropout_keeps_the_dropped_input_of_each_target_and_its_mask() -> None:
    """In the place of the input that they share. A GPU's mask has one byte."""
    added = estimate(DROPPING).activations - estimate().activations
    assert added == 50 * 3 * ((4 + 4) * 2 * 10 - 4 * 10)
    gpu = replace(DROPPING, device="gpu")
    added = estimate(gpu).activations - estimate(device="gpu").activations
    assert added == 50 * 3 * ((4 + 1) * 2 * 10 - 4 * 10)


def test_mlx_keeps_dropped_inputs_in_the_place_of_the_one_that_they_share() -> None:
    added = estimate(DROPPING, MLX).activations - estimate(workload=MLX).activations
    assert added == 50 * (3 + 1) * ((4 + 1) * 2 * 10 - 4 * 10)


def many(supervised: int) -> Workload:
    """As many positions in one row, all trained."""
    return replace(WORKLOAD, lengths_R=np.array([supervised]), supervised=1.0)


def test_pytorch_has_the_logits_of_one_chunk_and_nothing_beside_them() -> None:
    logits = 4 * cuda.HEAD_CHUNK["cpu"] * 100
    assert [estimate(workload=many(cuda.HEAD_CHUNK["cpu"] * n)).head for n in (1, 2, 9)] == [
        logits
    ] * 3
    assert estimate(workload=many(9999), device="gpu").head == 4 * cuda.HEAD_CHUNK["gpu"] * 100


def test_mlx_has_four_arrays_of_a_chunk_from_the_first() -> None:
    def head(chunks: float, device: Literal["cpu", "gpu"] = "cpu") -> int:
        workload = replace(many(int(chunks * mlx.HEAD_CHUNK["cpu"])), engine="mlx")
        return estimate(workload=workload, device=device).head

    logits = 4 * mlx.HEAD_CHUNK["cpu"] * 100
    assert [head(n) / logits for n in (0.5, 1, 2, 3, 9)] == [2, 4, 4, 4, 4]
    assert head(99, "gpu") == 4 * 4 * mlx.HEAD_CHUNK["gpu"] * 100


def test_files_in_the_dtype_that_is_computed_in_are_used_as_they_are_mapped() -> None:
    assert estimate(dtype="bfloat16").loading == 0
    quantized = estimate(dtype="bfloat16", quantization="4bit").loading
    assert quantized == 2 * SHAPE.parameters()
    assert estimate(workload=MLX).loading == 0


def test_a_larger_budget_rank_or_model_never_needs_less() -> None:
    def total(**change: Any) -> int:
        return estimate(**change).total

    larger = replace(SETUP.model, architecture=QWEN3.architecture(**SIZES | {"layers": 4}))
    assert total(micro_batch_tokens=75) > total()
    assert total(lora=LoraSpec(rank=3, targets=("q_proj", "v_proj"), dropout=0.0)) > total()
    assert total(lora=LoraSpec(rank=2, dropout=0.0)) > total()
    assert total(model=larger) > total()
    assert total(gradient_checkpointing=True) < total()
    assert estimate(workload=replace(WORKLOAD, trainable=8)).total > total()


def test_modules_that_are_imported_already_are_not_counted_again() -> None:
    def bytes_of(*imported: str) -> int:
        return cost_of("cuda").library_bytes("cpu", resident=10, imported=imported)

    all_to_come = sum(cuda_cost.MODULES.values())
    assert bytes_of() == 10 + all_to_come + cuda_cost.FIRST_STEP
    assert bytes_of("peft", "bitsandbytes", "re") == 10 + cuda_cost.FIRST_STEP
    on_gpu = cost_of("cuda").library_bytes("gpu", resident=10, imported=())
    assert on_gpu == cuda_cost.GPU_CONTEXT


def test_it_fits_where_a_tenth_is_left() -> None:
    parts = {
        "libraries": 1,
        "weights": 2,
        "loading": 3,
        "adapter": 1,
        "optimizer": 1,
        "activations": 2,
        "head": 1,
        "cache": 1,
    }
    assert Memory(**parts, available=10, device="cpu").fits
    assert not Memory(**parts, available=9, device="cpu").fits
    assert Memory(**parts, available=9, device="gpu").to_json() == {
        **parts,
        "available": 9,
        "device": "gpu",
        "total": 9,
        "peak": 7,
        "fits": False,
    }


def test_estimates_import_no_framework() -> None:
    code = (
        "import sys\n"
        "from qwen_local.backends.cost import cost_of\n"
        "for engine in ('mlx', 'cuda'): cost_of(engine)\n"
        "print([n for n in ('torch', 'mlx', 'transformers', 'bitsandbytes') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


# --- launches ---

H200, A800, RTX_3090, T4 = (9, 0), (8, 0), (8, 6), (7, 5)


def bound(
    model: str, tokens: int, capability: Capability | None, *, rows: int = 8, **change: Any
) -> bool:
    """Is a step of `rows` rows with so many tokens in all launched more slowly than computed?"""
    files = replace(SETUP.model, architecture=PUBLISHED[f"Qwen/{model}"])
    given = {"model": files, "device": "gpu", "dtype": "bfloat16", "micro_batch_tokens": 8192}
    workload = replace(
        WORKLOAD, batch_size=rows, lengths_R=np.array([tokens // rows] * 100), supervised=0.1
    )
    setup = replace(SETUP, **{**given, **change})
    return cost_of("cuda").launch_bound(setup, workload, capability)


def test_small_steps_of_fast_cards_wait_for_the_host() -> None:
    """0.6B and 1.7B on an H200, on an RTX 3090 micro-batches of some hundred tokens."""
    assert bound("Qwen3-0.6B", 2134, H200)
    assert bound("Qwen3-1.7B", 1024, H200)
    assert not bound("Qwen3-1.7B", 8192, H200)
    assert not bound("Qwen3-8B", 2134, A800)
    assert bound("Qwen3-0.6B", 512, RTX_3090)
    assert not bound("Qwen3-0.6B", 2134, RTX_3090)
    # The budget cuts a step into micro-batches, each of which is launched.
    assert bound("Qwen3-0.6B", 8192, RTX_3090, micro_batch_tokens=512)


def test_a_pass_is_recorded_where_one_kernel_attends_and_no_state_is_read_in_between() -> None:
    assert not bound("Qwen3-0.6B", 512, T4)
    assert not bound("Qwen3-0.6B", 512, None)
    assert not bound("Qwen3-0.6B", 512, H200, dtype="float32")
    assert not bound("Qwen3-0.6B", 512, H200, device="cpu")
    dropped = LoraSpec(rank=2, dropout=0.1)
    assert bound("Qwen3-0.6B", 512, H200, lora=dropped)
    assert bound("Qwen3-0.6B", 512, H200, gradient_checkpointing=True)
    assert not bound("Qwen3-0.6B", 512, H200, lora=dropped, gradient_checkpointing=True)
    mlx_cost = cost_of("mlx")
    gpu = replace(SETUP, device="gpu", dtype="bfloat16")
    assert not mlx_cost.can_record(gpu, None) and not mlx_cost.launch_bound(gpu, MLX, None)


def test_graphs_have_memory_of_their_own_for_padded_passes() -> None:
    plain, graphs = (estimate(device="gpu", cuda_graphs=g) for g in (False, True))
    assert graphs.activations == 64 / 50 * plain.activations  # the smallest size
    assert graphs.head >= plain.head
    own = graphs.activations + graphs.head
    assert graphs.cache == round(KEPT_BY_CUDA * own) + own + 8 * 7
