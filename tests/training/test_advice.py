"""When 4-bit is advised and when advised against, and when evaluation is too dear."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pytest import approx

from qwen_local.backends.base import Setup
from qwen_local.backends.cost import estimate_memory
from qwen_local.backends.machine import Engine
from qwen_local.backends.memory import Workload
from qwen_local.job.schema import LoraSpec, Quantization, TrainSpec
from qwen_local.models.published import PUBLISHED
from qwen_local.models.source import ModelFiles
from qwen_local.training.advice import (
    evaluation_advice,
    free_memory_warning,
    quantization_advice,
)
from qwen_local.training.schedule import make_schedule

GB = 10**9
NF4 = " (on NVIDIA cards NF4 slows models up to about 1.5B by some 40 %, bitsandbytes issue 1851)"


def case(
    model: str,
    quantization: Quantization,
    available: int,
    *,
    device: Literal["cpu", "gpu"] = "gpu",
    engine: Engine = "cuda",
) -> tuple[Setup, Workload]:
    """A usual job: rank 16 on every linear layer, rows of 512 tokens one at a time."""
    shape, lora = PUBLISHED[f"Qwen/{model}"], LoraSpec()
    setup = Setup(
        model=ModelFiles(name=model, folder=Path(), commit=None, config={}, architecture=shape),
        lora=lora,
        device=device,
        dtype="bfloat16" if device == "gpu" else "float32",
        quantization=quantization,
        micro_batch_tokens=512,
    )
    workload = Workload(
        engine=engine,
        trainable=shape.lora_parameters(lora.rank, lora.target_names, shape.layers),
        lengths_R=np.array([512]),
        eval_tokens=0,
        supervised=1.0,
        batch_size=1,
        steps=10,
        libraries=0,
        available=available,
    )
    return setup, workload


def advice(
    model: str,
    quantization: Quantization,
    available: int,
    *,
    device: Literal["cpu", "gpu"] = "gpu",
    engine: Engine = "cuda",
) -> str | None:
    return quantization_advice(*case(model, quantization, available, device=device, engine=engine))


def need(
    model: str,
    quantization: Quantization,
    device: Literal["cpu", "gpu"] = "gpu",
    engine: Engine = "cuda",
) -> str:
    """What the estimate says, in GB."""
    memory = estimate_memory(*case(model, quantization, 1, device=device, engine=engine))
    return f"{memory.total / 1e9:.2f}"


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
    whole = need(model, "none", engine=engine)
    assert advice(model, "4bit", 80 * GB, engine=engine) == (
        f"model.quantization=none fits, with about {whole} of the 80.00 GB; "
        f"4-bit saves memory, not time{slower}"
    )
    assert advice(model, "8bit", 80 * GB, engine=engine) == (
        f"model.quantization=none fits, with about {whole} of the 80.00 GB; "
        "8-bit saves memory, not time"
    )


def test_what_is_advised_is_not_advised_against_in_turn() -> None:
    """A tenth of the memory is left for what the estimate does not know of, either way."""
    total = estimate_memory(*case("Qwen3-8B", "none", 1)).total
    just_enough = -(-total * 10 // 9)
    assert advice("Qwen3-8B", "none", just_enough) is None
    assert advice("Qwen3-8B", "4bit", just_enough) is not None
    assert advice("Qwen3-8B", "none", just_enough - 2) is not None
    assert advice("Qwen3-8B", "4bit", just_enough - 2) is None
    quantized = estimate_memory(*case("Qwen3-8B", "4bit", 1)).total
    assert advice("Qwen3-8B", "none", -(-quantized * 10 // 9)) is not None
    assert advice("Qwen3-8B", "none", -(-quantized * 10 // 9) - 2) is None


def test_on_a_cpu_quantization_is_a_matter_of_memory_alone() -> None:
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


def test_a_run_that_needs_memory_of_other_programs_has_a_warning() -> None:
    memory = estimate_memory(*case("Qwen3-0.6B", "none", 24 * GB))
    assert memory.fits
    needed = memory.total - memory.libraries
    warning = free_memory_warning(memory, needed - 1)
    assert warning is not None
    assert warning.startswith(f"only {(needed - 1) / 1e9:.2f} GB are free now: other programs")
    assert free_memory_warning(memory, needed) is None
    assert free_memory_warning(memory, None) is None
    assert free_memory_warning(replace(memory, device="cpu"), 1) is None
    # What does not fit the whole card has a hint of its own.
    assert free_memory_warning(replace(memory, available=memory.total), 1) is None


R4 = {"rows": 78_271, "eval_rows": 4_450}
"""Reference run R4: its rows, one a step, evaluated every 200 steps for three epochs."""


def test_r4_would_evaluate_for_many_times_as_long_as_it_trains() -> None:
    """It was not counted then: 1,174 evaluations of 504 to 565 s beside 27 to 33 hours.

    R4 evaluated at 7.86 to 8.82 rows a second and trained at 2.2 to 2.3, so that its evaluation
    would have been some 5 to 6 times its training. The plan takes an evaluated row for half a
    trained one, where those were a quarter, and says 11.
    """
    spec = TrainSpec(epochs=3, batch_size=1, eval_every=200)
    schedule = make_schedule(spec, **R4)
    assert (schedule.steps, schedule.evaluations) == (234_813, 1_176)
    assert schedule.evaluation_share == approx(0.918, abs=5e-4)
    assert evaluation_advice(spec, schedule, **R4) == (
        "evaluation would take about 11.1 times as long as training; train.eval_every=auto "
        "evaluates every 23,482 steps, about 9 % of the time"
    )


@pytest.mark.parametrize("every", ["auto", 5_000])
def test_nothing_is_said_of_an_evaluation_that_is_cheaper_than_training(every: Any) -> None:
    spec = TrainSpec(epochs=3, batch_size=1, eval_every=every)
    assert evaluation_advice(spec, make_schedule(spec, **R4), **R4) is None


def test_nothing_is_said_where_there_is_nothing_to_evaluate_on() -> None:
    spec = TrainSpec(eval_every=1)
    schedule = make_schedule(spec, rows=100, eval_rows=0)
    assert evaluation_advice(spec, schedule, rows=100, eval_rows=0) is None
