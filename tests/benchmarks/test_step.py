"""The profile of a step: what is launched, what waits, and what the engine has two forms of."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import heads, kernels, step
from benchmarks.made_rows import made_batches
from benchmarks.parts import Figure, impossible
from qwen_local.backends.base import RowTooLargeError, Setup, StepResult
from qwen_local.embedded import tiny_model_path
from qwen_local.errors import OutOfMemoryError
from qwen_local.models.source import ModelFiles
from qwen_local.rows.rows import Rows

pytestmark = pytest.mark.slow


def event(name: str, *, card: bool = False, us: float = 0.0, spans: bool = False) -> Any:
    return SimpleNamespace(
        name=name,
        device_type=step.CARD if card else "a CPU",
        time_range=SimpleNamespace(elapsed_us=lambda: us),
        is_user_annotation=spans,
    )


def test_a_profile_becomes_figures_of_a_step() -> None:
    events = [
        *[event("cudaLaunchKernel")] * 6,
        *[event("cudaMemcpyAsync")] * 2,
        *[event("cudaStreamSynchronize")] * 2,
        event("cudaDeviceSynchronize"),
        event("aten::mm"),
        event("gemm", card=True, us=3000),
        event("gemm", card=True, us=1000),
        event("add", card=True, us=500),
        event("Optimizer.step#AdamW.step", card=True, us=9000, spans=True),
    ]
    assert step.summary(events, 2) == {
        "busy_ms": 2.25,
        "launches": 4.0,
        "graphs": 0.0,
        "syncs": 1.0,
        "kernels_ms": {"gemm": 2.0, "add": 0.25},
    }


def test_a_profile_without_kernels_is_none() -> None:
    assert step.summary([event("aten::mm")], 1) == {"profile": "none: it has no kernels"}


def test_time_in_which_the_host_waits_is_counted_apart() -> None:
    tensor = torch.ones(3)
    with step.waiting() as waited:
        assert tensor.tolist() == [1.0, 1.0, 1.0]
        assert tensor[0].item() == 1.0
    assert len(waited) == 2
    tensor.tolist()
    assert len(waited) == 2


def test_the_last_pass_over_the_batches_counts() -> None:
    batches = made_batches(64, 2, vocabulary=100)
    calls: list[int] = []

    def work(rows: Any) -> float:
        time.sleep(0.001 if len(calls) >= 2 * (step.PASSES - 1) else 0.01)
        calls.append(len(rows))
        return 2.0

    clock = step.by_the_clock(work, batches, "cpu")
    assert calls == [len(rows) for rows in batches] * step.PASSES
    assert (len(clock.losses), len(clock.step_ms), clock.span_ms) == (2 * step.PASSES, 2, [])
    figures = clock.figures()
    assert figures["first_pass_ms"] >= 10 > figures["step_ms"] >= figures["host_ms"] >= 1


def test_graphs_are_measured_beside_eager_steps_where_the_engine_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [one for one in dataclasses.fields(Setup) if one.name != "cuda_graphs"]
    monkeypatch.setattr(step, "fields", lambda _: names)
    assert step.forms("gpu") == {"eager": {}}
    monkeypatch.setattr(step, "fields", lambda _: [*names, SimpleNamespace(name="cuda_graphs")])
    assert step.forms("cpu") == {"eager": {"cuda_graphs": False}}
    assert step.forms("gpu") == {"eager": {"cuda_graphs": False}, "graph": {"cuda_graphs": True}}


@pytest.mark.parametrize("tokens", [64, 512, 2048])
def test_batches_have_about_as_many_tokens_as_asked(tokens: int) -> None:
    batches = made_batches(tokens, 3, vocabulary=100)
    assert len(batches) == 3
    assert all(len(rows) == 1 or tokens - 400 < rows.tokens <= tokens for rows in batches)


def test_an_error_of_another_package_is_noted_and_the_part_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Any:
        raise ImportError("no symbol\nlibcuda is too old")

    known = heads.known_heads

    def with_broken(device: Any) -> Any:
        found, absent = known(device)
        return {"first": broken, **found, "last": lambda: broken}, absent

    monkeypatch.setattr(heads, "known_heads", with_broken)
    figures: list[Figure] = list(heads.loss_heads("cpu"))
    assert [one for one in figures if "failed" in one] == [
        {"head": "first", "failed": "ImportError: libcuda is too old"},
        {"head": "last", "failed": "TypeError: " + str(figures[-1]["failed"]).split(": ", 1)[1]},
    ]
    assert sum("check" in one for one in figures) == 2


def test_an_error_of_our_own_head_ends_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Iterator[Figure]:
        raise RuntimeError("ours")

    monkeypatch.setattr(heads, "_one_head", broken)
    with pytest.raises(RuntimeError, match="ours"):
        list(heads.loss_heads("cpu"))


def test_without_a_card_no_kernel_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "environment", lambda *_: iter([impossible("no card")]))
    assert list(kernels.environment_with_kernels((), "gpu", tmp_path)) == [impossible("no card")]


def test_the_machine_comes_first_and_then_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "environment", lambda *_: iter([{"card": "cpu"}]))
    monkeypatch.setattr(kernels, "opened", lambda _: None)
    machine, attention, packed = kernels.environment_with_kernels((), "cpu", tmp_path)
    assert machine == {"card": "cpu"}
    assert attention["chosen"].keys() == {"PyTorch's own", "with an engine open"}
    assert packed["module"] == "torch.nn.attention.varlen"


def test_the_chosen_attention_is_named() -> None:
    assert kernels.chosen("cpu").keys() == kernels.CASES.keys()
    assert all("unknown" not in name for name in kernels.chosen("cpu").values())
    assert kernels.module_of_the_kernel() == "torch.nn.attention.varlen"


def test_a_model_and_a_size_that_memory_does_not_hold_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        micro_batch_tokens = 64

        def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
            if rows.tokens > 300:
                raise RowTooLargeError(0, rows.tokens)
            return StepResult(3.0, 1.0, lr, True, rows.tokens)

    def opened(model: ModelFiles, *_: Any) -> Small:
        if len(opened_models) == 1:
            raise OutOfMemoryError("no")
        opened_models.append(model)
        return Small()

    opened_models: list[ModelFiles] = []
    monkeypatch.setattr(step, "open_engine", opened)
    monkeypatch.setattr(step, "make_model", lambda *_: tiny_model_path())
    monkeypatch.setattr(step, "MODELS", {"cpu": ("small", "large")})
    monkeypatch.setattr(step, "TOKENS", {"cpu": (200, 4000)})
    measured, skipped, check, large = step.step_costs("cpu", tmp_path)
    assert (measured["tokens"], measured["micro_batch_tokens"]) == (200, 64)
    assert (skipped["tokens"], skipped["skipped_because"]) == (4000, "memory does not suffice")
    assert check["holds"]
    assert (large["model"], large["skipped_because"]) == ("large", "memory does not hold the model")
