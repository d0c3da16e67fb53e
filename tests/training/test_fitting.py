"""What `auto` chooses, on devices of several sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwen_local.backends.base import Setup
from qwen_local.backends.cost import estimate_memory
from qwen_local.backends.memory import USABLE, Workload
from qwen_local.job.schema import LoraSpec
from qwen_local.models.published import PUBLISHED
from qwen_local.models.source import ModelFiles
from qwen_local.training.fitting import Fit, fit

SHAPE = PUBLISHED["Qwen/Qwen3-0.6B"]
SETUP = Setup(
    model=ModelFiles(name="m", folder=Path(), commit=None, config={}, architecture=SHAPE),
    lora=LoraSpec(),
    device="gpu",
    dtype="bfloat16",
)
WORKLOAD = Workload(
    engine="cuda",
    trainable=10**7,
    lengths_R=np.array([250] * 1000),
    eval_tokens=0,
    supervised=0.5,
    batch_size=64,
    steps=100,
    libraries=0,
    available=0,
)


def room_for(size: int, checkpointing: bool) -> int:
    """Bytes of a device that holds just this."""
    setup = replace(SETUP, micro_batch_tokens=size, gradient_checkpointing=checkpointing)
    return -(-estimate_memory(setup, WORKLOAD).total * 100 // round(100 * USABLE))


def fitted(
    available: int,
    *,
    budget: Literal["auto"] | int = "auto",
    checkpointing: Literal["auto"] | bool = "auto",
    **change: Any,
) -> tuple[int, bool, str]:
    workload = replace(WORKLOAD, available=available)
    found: Fit = fit(replace(SETUP, **change), workload, budget=budget, checkpointing=checkpointing)
    return found.setup.micro_batch_tokens, found.setup.gradient_checkpointing, found.reason


def test_where_there_is_room_the_device_gets_what_it_likes_best() -> None:
    assert fitted(10**12) == (
        8192,
        False,
        "8,192 tokens computed at once, the most that a GPU gains from; activations are kept",
    )
    assert fitted(10**12, device="cpu") == (
        1024,
        False,
        "1,024 tokens computed at once, the most that a CPU gains from; activations are kept",
    )


def test_where_less_fits_the_budget_is_halved_first() -> None:
    assert fitted(room_for(4096, False)) == (
        4096,
        False,
        "4,096 tokens computed at once, as 8,192 would not fit; activations are kept",
    )
    assert fitted(room_for(2048, False))[:2] == (2048, False)


def test_rather_than_a_tiny_budget_activations_are_recomputed() -> None:
    assert fitted(room_for(1024, False)) == (
        8192,
        True,
        "8,192 tokens computed at once, the most that a GPU gains from; activations are "
        "recomputed, as only 1,024 tokens would fit otherwise",
    )


def test_where_nothing_else_fits_activations_are_recomputed() -> None:
    without, least = room_for(256, False), room_for(256, True)
    assert least < without
    size, twice, reason = fitted(without - 10)
    assert (size >= 256, twice) == (True, True)
    assert reason.endswith("activations are recomputed, as nothing would fit otherwise")
    assert fitted(least) == (
        256,
        True,
        "256 tokens computed at once, as 512 would not fit; activations are recomputed, as "
        "nothing would fit otherwise",
    )


def test_what_does_not_fit_at_all_gets_the_least_need() -> None:
    reason = "activations are recomputed; it still does not fit"
    assert fitted(room_for(256, True) - 10) == (256, True, reason)
    assert fitted(0, checkpointing=False) == (
        256,
        False,
        "activations are kept; it still does not fit",
    )


def test_what_the_job_says_is_not_chosen() -> None:
    assert fitted(10**12, budget=777) == (
        777,
        False,
        "777 tokens computed at once, as the job sets it; activations are kept",
    )
    assert fitted(10**12, checkpointing=True) == (
        8192,
        True,
        "8,192 tokens computed at once, the most that a GPU gains from; activations are recomputed",
    )
    assert fitted(room_for(1024, False), checkpointing=False)[:2] == (1024, False)
    assert fitted(room_for(4096, True), budget=4096)[:2] == (4096, True)
    assert fitted(room_for(1024, False), budget=1024)[:2] == (1024, False)


def test_what_is_chosen_fits_by_the_margin_that_the_plan_shows() -> None:
    for available in range(10**9, 40 * 10**9, 10**9):
        workload = replace(WORKLOAD, available=available)
        found = fit(SETUP, workload, budget="auto", checkpointing="auto")
        fits = estimate_memory(found.setup, workload).fits
        assert fits == ("does not fit" not in found.reason)
