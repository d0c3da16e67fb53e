"""The estimate of memory: exact arithmetic on a model small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from qwen_local.backends.base import HEAD_CHUNK, HEAD_CHUNK_GPU, Setup
from qwen_local.job import LoraSpec
from qwen_local.models.architecture import Architecture, Stored
from qwen_local.models.source import ModelFiles
from qwen_local.training.memory import Memory, estimate_memory

SHAPE = Architecture(
    model_type="qwen3",
    hidden=10,
    intermediate=30,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=5,
    vocabulary=100,
    tied=True,
    rope_theta=1e6,
    positions=64,
)
SETUP = Setup(
    model=ModelFiles(name="m", folder=Path(), commit=None, config={}, architecture=SHAPE),
    lora=LoraSpec(rank=2, targets=("q_proj", "v_proj"), dropout=0.0),
    device="cpu",
    dtype="float32",
    micro_batch_tokens=50,
)
BLOCK = 4 * 10 + 3 * (4 * 5) + 4 * (2 * 5) + 4 * 30 + 2 * 2
"""Norms, queries, keys and values, the MLP, and a rank for each of two targets."""
QK_NORM = 2 * (4 * 5 + 2 * 5)
"""Queries and keys around the norms that Qwen3 has on them."""


def estimate(setup: Setup = SETUP, *, trainable: int = 7, longest: int = 20) -> Memory:
    return estimate_memory(setup, trainable=trainable, longest=longest, available=10**6)


def test_every_part_is_the_product_of_its_shapes() -> None:
    memory = estimate()
    assert memory.weights == 4 * SHAPE.parameters()
    assert memory.adapter == 7 * 4 * 4  # itself, its gradient, and two moments
    assert memory.activations == 50 * 3 * BLOCK * 4
    assert memory.head == 3 * 4 * HEAD_CHUNK * 100
    assert memory.total == memory.weights + memory.adapter + memory.activations + memory.head
    assert memory.available == 10**6


def test_checkpointing_keeps_a_vector_a_block_and_one_block_whole() -> None:
    memory = estimate(replace(SETUP, gradient_checkpointing=True))
    assert memory.activations == 50 * (3 * 10 + BLOCK) * 4


def test_a_row_beyond_the_budget_is_a_micro_batch_of_its_own() -> None:
    assert estimate(longest=60).activations == 60 * 3 * BLOCK * 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_halves_the_model_and_not_the_adapter(
    dtype: Literal["bfloat16", "float16"],
) -> None:
    whole, half = estimate(), estimate(replace(SETUP, dtype=dtype))
    assert 2 * half.weights == whole.weights
    in_float32 = 50 * 3 * (4 * 10 + 2 * 2 + QK_NORM) * 4  # the norms, and the low-rank vectors
    assert 2 * (half.activations - in_float32) == whole.activations - in_float32
    assert (half.adapter, half.head) == (whole.adapter, whole.head)


LINEAR = sum(out * into for out, into in SHAPE.linear_shapes().values())
"""Weights of the linear layers of a block."""
LARGEST = 10 * 30


@pytest.mark.parametrize(("quantization", "bits"), [("4bit", 4), ("8bit", 8)])
@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_quantised_layers_take_their_bits_and_their_groups_scales(
    quantization: Literal["4bit", "8bit"],
    bits: int,
    dtype: Literal["float32", "bfloat16"],
    width: int,
) -> None:
    """A scale and a bias for 64 weights, the rest of the model whole, and one layer dequantised."""
    quantised = 3 * LINEAR
    whole = (SHAPE.parameters() - quantised) * width
    expected = round(quantised * (bits + 2 * 8 * width / 64) / 8) + whole + LARGEST * width
    assert estimate(replace(SETUP, quantization=quantization, dtype=dtype)).weights == expected
    scheme: Literal["nf4", "int8"] = "nf4" if bits == 4 else "int8"
    stored = replace(SHAPE, stored=Stored(scheme=scheme, bits=bits, group=64))
    model = replace(SETUP.model, architecture=stored)
    assert estimate(replace(SETUP, model=model, dtype=dtype)).weights == expected


def test_a_model_that_mlx_quantised_has_quantised_embeddings_too() -> None:
    stored = replace(SHAPE, stored=Stored(scheme="affine", bits=4, group=32))
    memory = estimate(replace(SETUP, model=replace(SETUP.model, architecture=stored)))
    assert memory.weights == round(SHAPE.parameters() * (4 + 2 * 32 / 32) / 8) + LARGEST * 4


def test_int8_layers_keep_their_inputs_whether_checkpointed_or_not() -> None:
    inputs = sum(into for _, into in SHAPE.linear_shapes().values())
    for checkpointed in (False, True):
        setup = replace(SETUP, gradient_checkpointing=checkpointed)
        more = estimate(replace(setup, quantization="8bit")).activations
        assert more - estimate(setup).activations == 50 * 3 * 2 * inputs


def test_dropout_keeps_the_dropped_input_of_each_target_and_its_mask() -> None:
    dropping = replace(SETUP, lora=LoraSpec(rank=2, targets=("q_proj", "v_proj"), dropout=0.1))
    added = estimate(dropping).activations - estimate().activations
    assert added == 50 * 3 * round((4 + 1.6) * 2 * 10)


def test_a_gpu_takes_a_longer_chunk_through_the_head() -> None:
    assert estimate(replace(SETUP, device="gpu")).head == 3 * 4 * HEAD_CHUNK_GPU * 100


def test_a_larger_budget_rank_or_model_never_needs_less() -> None:
    def total(**change: object) -> int:
        return estimate(replace(SETUP, **change)).total  # type: ignore[arg-type]

    larger = replace(SETUP.model, architecture=replace(SHAPE, layers=4))
    assert total(micro_batch_tokens=51) > total()
    assert total(lora=LoraSpec(rank=3, targets=("q_proj", "v_proj"), dropout=0.0)) > total()
    assert total(lora=LoraSpec(rank=2, dropout=0.0)) > total()
    assert total(model=larger) > total()
    assert total(gradient_checkpointing=True) < total()
    assert estimate(trainable=8).total > total()


def test_it_fits_where_less_is_needed_than_there_is() -> None:
    parts = {"weights": 1, "adapter": 2, "activations": 3, "head": 4}
    assert Memory(**parts, available=11).fits
    assert not Memory(**parts, available=10).fits
    assert Memory(**parts, available=10).to_json() == {
        **parts,
        "available": 10,
        "total": 10,
        "fits": False,
    }
