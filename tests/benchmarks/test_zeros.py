"""A device that computes nothing returns zeros, which agree with zeros: every check must fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import agreement, answer_speed
from benchmarks.agreement import Place
from benchmarks.gpu import cuda_path, heads, step
from benchmarks.parts import Figure
from qwen_local.backends.base import AdapterState, Arrays, Completion, StepResult
from qwen_local.embedded import tiny_model_path
from qwen_local.rows.rows import Rows
from qwen_local.rows.scores import Scores

pytestmark = pytest.mark.slow

HERE = Place(engine="cuda", device="cpu")


class Nothing:
    """An engine whose every number is zero."""

    micro_batch_tokens = 16

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        return StepResult(0.0, 0.0, lr, True, rows.tokens)

    def warm_up(self, rows: Rows) -> int:
        return rows.tokens

    def score(self, rows: Rows) -> Scores:
        return Scores(nll_R=np.zeros(len(rows)), tokens_R=np.ones(len(rows), int))

    def generate(self, prompts: list[Any], *, max_tokens: int, **_: Any) -> list[Completion]:
        return [Completion((0,) * max_tokens, "length", None) for _ in prompts]

    def session(self) -> Any:
        (answer,) = self.generate([[]], max_tokens=3)
        return SimpleNamespace(reply=lambda prompt, **_: answer)

    def adapter(self) -> Arrays:
        return {"lora_A": np.ones((2, 3), np.float32), "lora_B": np.zeros((3, 2), np.float32)}

    def load_adapter(self, adapter: Arrays) -> None:
        pass

    def load_state(self, state: AdapterState) -> None:
        pass

    def state(self) -> AdapterState:
        zeros = {name: np.zeros_like(array) for name, array in self.adapter().items()}
        return AdapterState(self.adapter(), zeros, zeros, 1)


PARTS: dict[str, Callable[[], Iterator[Figure]]] = {
    "curves": partial(agreement.same_curves, HERE, HERE),
    "packing": partial(agreement.together_or_alone, HERE),
    "packing of long and short rows": partial(cuda_path.one_row_at_a_time, "cpu"),
    "4 bits": partial(agreement.four_bits, HERE),
    "resume": partial(agreement.resumed, HERE),
    "answers": partial(agreement.answers, HERE, HERE),
    "attention": partial(cuda_path.attention_against_sdpa, "cpu"),
    "heads": partial(heads.loss_heads, "cpu"),
    "out of memory": partial(cuda_path.out_of_memory, "cpu"),
    "step": partial(step.step_costs, "cpu", Path()),
    "answer speed": partial(answer_speed.answer_speed, HERE, Path()),
}


@pytest.fixture
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(given: list[Tensor], *_: Any) -> list[Tensor]:
        q, k, v, _gradient = given
        return [torch.zeros_like(x) for x in (q, q, k, v)]

    def no_loss(head: Any, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.zeros(()), torch.zeros_like(given[0])

    for module, name in ((agreement, "opened"), (cuda_path, "opened"), (step, "open_engine")):
        monkeypatch.setattr(module, name, lambda *_, **__: Nothing())
    monkeypatch.setattr(answer_speed, "open_backend", lambda *_: Nothing())
    for module in (step, answer_speed):
        tiny = tiny_model_path()
        monkeypatch.setattr(module, "make_model", lambda *_, tiny=tiny: tiny)
    for name in ("_by_row", "_ours", "_written_out"):
        monkeypatch.setattr(cuda_path, name, zeros)
    monkeypatch.setattr(heads, "_pass", no_loss)
    card = SimpleNamespace(total_memory=1 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)


@pytest.mark.usefixtures("nothing_is_computed")
@pytest.mark.parametrize("part", PARTS)
def test_every_check_of_numbers_fails_on_zeros(part: str) -> None:
    checks = [figure for figure in PARTS[part]() if "check" in figure]
    assert checks
    # How small micro-batches became is no number of the device.
    holding = [
        one["check"] for one in checks if one["holds"] and "micro-batch after" not in one["check"]
    ]
    assert holding == []


def test_what_was_left_in_memory_is_no_loss_either() -> None:
    left = Scores(nll_R=np.array([2e-41, 0.0]), tokens_R=np.array([3, 3]))
    assert np.isnan(agreement.rows_apart(left, left))
    assert (
        agreement.rows_apart(replace(left, nll_R=np.ones(2)), replace(left, nll_R=np.ones(2))) == 0
    )


def test_a_curve_with_a_loss_that_is_none_agrees_with_nothing() -> None:
    assert np.isnan(agreement.curves_apart([1.0, float("nan")], [1.0, 1.0]))


def test_attention_that_returns_no_number_in_the_last_case_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = cuda_path._ours

    def broken(given: list[Tensor], lengths: tuple[int, ...]) -> list[Tensor]:
        found = ours(given, lengths)
        return [x * float("nan") for x in found] if lengths == cuda_path.LENGTHS[-1] else found

    monkeypatch.setattr(cuda_path, "_ours", broken)
    checks = [one for one in cuda_path.attention_against_sdpa("cpu") if "check" in one]
    assert [one["holds"] for one in checks] == [True, False, False, False, False]
