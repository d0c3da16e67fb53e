"""When 4-bit is advised and when advised against, on machines of several sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from qwen_local.backends.base import Setup
from qwen_local.backends.machine import Engine
from qwen_local.job import LoraSpec, Quantization
from qwen_local.models.published import PUBLISHED
from qwen_local.models.source import ModelFiles
from qwen_local.training.advice import quantization_advice
from qwen_local.training.memory import estimate_memory

GB = 10**9
NF4 = " (on NVIDIA cards NF4 slows models up to about 1.5B by some 40 %, bitsandbytes issue 1851)"


def case(
    model: str, quantization: Quantization, *, device: Literal["cpu", "gpu"] = "gpu"
) -> dict[str, Any]:
    """The arguments for a usual job: rank 16 on every linear layer, rows of 512 tokens."""
    shape, lora = PUBLISHED[f"Qwen/{model}"], LoraSpec()
    setup = Setup(
        model=ModelFiles(name=model, folder=Path(), commit=None, config={}, architecture=shape),
        lora=lora,
        device=device,
        dtype="bfloat16" if device == "gpu" else "float32",
        quantization=quantization,
        micro_batch_tokens=512,
    )
    trainable = shape.lora_parameters(lora.rank, lora.target_names, shape.layers)
    return {"setup": setup, "trainable": trainable, "longest": 512}


def advice(
    model: str,
    quantization: Quantization,
    available: int,
    *,
    device: Literal["cpu", "gpu"] = "gpu",
    engine: Engine = "cuda",
) -> str | None:
    arguments = case(model, quantization, device=device)
    return quantization_advice(**arguments, engine=engine, available=available)


def need(model: str, quantization: Quantization, device: Literal["cpu", "gpu"] = "gpu") -> str:
    """What the estimate says, in GB."""
    arguments = case(model, quantization, device=device)
    return f"{estimate_memory(**arguments, available=1).total / 1e9:.2f}"


@pytest.mark.parametrize(
    ("model", "gigabytes"), [("Qwen3-0.6B", 24), ("Qwen3-4B", 24), ("Qwen3-8B", 80)]
)
def test_nothing_is_said_of_a_model_that_fits_as_it_is(model: str, gigabytes: int) -> None:
    assert advice(model, "none", gigabytes * GB) is None


def test_4_bit_is_advised_where_a_model_fits_only_so() -> None:
    """8B in bfloat16 alone are 16.4 GB; what is kept for the backward pass is too much."""
    assert advice("Qwen3-8B", "none", 24 * GB) == (
        f"model.quantization=4bit would leave room, with about {need('Qwen3-8B', '4bit')} "
        "of the 24.00 GB"
    )


def test_nothing_is_said_where_4_bit_is_needed() -> None:
    assert advice("Qwen3-8B", "4bit", 24 * GB) is None
    assert advice("Qwen3-8B", "8bit", 24 * GB) is None


def test_nothing_is_said_where_4_bit_would_not_fit_either() -> None:
    assert advice("Qwen3-32B", "none", 24 * GB) is None
    assert advice("Qwen3-32B", "4bit", 24 * GB) is None


@pytest.mark.parametrize(
    ("model", "engine", "slower"),
    [
        ("Qwen3-0.6B", "cuda", NF4),
        ("Qwen3-1.7B", "cuda", NF4),
        ("Qwen3-4B", "cuda", ""),
        ("Qwen3-8B", "cuda", ""),
        ("Qwen3-0.6B", "mlx", ""),
    ],
)
def test_4_bit_is_advised_against_where_nothing_is_won_by_it(
    model: str, engine: Engine, slower: str
) -> None:
    assert advice(model, "4bit", 80 * GB, engine=engine) == (
        f"model.quantization=none fits, with about {need(model, 'none')} of the 80.00 GB; "
        f"4-bit saves memory, not time{slower}"
    )
    assert advice(model, "8bit", 80 * GB, engine=engine) == (
        f"model.quantization=none fits, with about {need(model, 'none')} of the 80.00 GB; "
        "8-bit saves memory, not time"
    )


def test_what_is_advised_is_not_advised_against_in_turn() -> None:
    """A tenth of the memory is left for what the estimate does not know of, either way."""
    total = estimate_memory(**case("Qwen3-8B", "none"), available=1).total
    just_enough = -(-total * 10 // 9)
    assert advice("Qwen3-8B", "none", just_enough) is None
    assert advice("Qwen3-8B", "4bit", just_enough) is not None
    assert advice("Qwen3-8B", "none", just_enough - 2) is not None
    assert advice("Qwen3-8B", "4bit", just_enough - 2) is None
    quantised = estimate_memory(**case("Qwen3-8B", "4bit"), available=1).total
    assert advice("Qwen3-8B", "none", -(-quantised * 10 // 9)) is not None
    assert advice("Qwen3-8B", "none", -(-quantised * 10 // 9) - 2) is None


def test_on_a_cpu_quantisation_is_a_matter_of_memory_alone() -> None:
    def on_cpu(model: str, quantization: Quantization) -> str | None:
        return advice(model, quantization, 32 * GB, device="cpu")

    assert on_cpu("Qwen3-0.6B", "none") is None
    assert on_cpu("Qwen3-8B", "4bit") == "4-bit saves memory, not time, on a CPU"
    assert on_cpu("Qwen3-8B", "8bit") == "8-bit saves memory, not time, on a CPU"
    assert on_cpu("Qwen3-0.6B", "4bit") == (
        f"model.quantization=none fits, with about {need('Qwen3-0.6B', 'none', 'cpu')} "
        "of the 32.00 GB; 4-bit saves memory, not time"
    )
    assert on_cpu("Qwen3-8B", "none") == (
        f"model.quantization=4bit would leave room, with about {need('Qwen3-8B', '4bit', 'cpu')} "
        "of the 32.00 GB"
    )
