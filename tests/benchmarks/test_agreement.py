"""The checks that are asked of a card: what is wrong fails, and nothing else does, on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import agreement
from benchmarks.agreement import Place
from benchmarks.gpu import cuda_path, heads
from qwen_local.backends.base import Backend
from qwen_local.backends.cuda import attention, forward
from qwen_local.rows.scores import Scores

pytestmark = pytest.mark.slow

HERE = Place(engine="cuda", device="cpu")


def failing(figures: Any) -> list[str]:
    """Names of the checks that do not hold."""
    found = list(figures)
    assert any("check" in figure for figure in found)
    return [figure["check"] for figure in found if not figure.get("holds", True)]


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "STEPS", 8)
    monkeypatch.setattr(agreement.curve, "__kwdefaults__", {"start": 0, "steps": 8})


def leaking(*given: Any, **named: Any) -> Any:
    """Attention that takes all rows for one."""
    queries, keys, values, borders = given
    total = sum(borders.lengths)
    whole = attention.Borders((total,), total, borders.positions_T, borders.starts)
    return attention.attention(queries, keys, values, whole, **named)


def test_rows_that_hear_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(agreement.together_or_alone(HERE)) == []
    monkeypatch.setattr(forward, "attention", leaking)
    assert len(failing(agreement.together_or_alone(HERE))) == 5


def test_attention_that_leaks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(cuda_path.attention_against_sdpa("cpu")) == []
    monkeypatch.setattr(cuda_path, "attention", leaking)
    assert len(failing(cuda_path.attention_against_sdpa("cpu"))) == 4


def test_curves_that_part_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, seeds = agreement.opened, iter((0, 1, 0))

    def other(place: Place, **settings: Any) -> Backend:
        return opened(place, seed=next(seeds), **settings)

    monkeypatch.setattr(agreement, "opened", other)
    (name,) = failing(agreement.same_curves(HERE, HERE))
    assert name == "losses of 8 steps, float32, PyTorch on the CPU against PyTorch on the CPU"


def test_a_run_that_does_not_go_on_where_it_was_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = agreement.opened

    def forgetful(place: Place, **settings: Any) -> Backend:
        backend: Any = opened(place, **settings)
        backend.load_state = lambda state: backend.load_adapter(state.adapter)
        return backend

    monkeypatch.setattr(agreement, "opened", forgetful)
    assert failing(agreement.resumed(HERE)) == ["a resumed run against it"]


def test_rows_that_are_known_by_heart_are_not_held_against_their_rounding() -> None:
    tokens = np.array([10, 10])
    a, b = (Scores(nll_R=np.array(nll), tokens_R=tokens) for nll in ([20.2, 2e-3], [20.0, 1e-3]))
    assert agreement.rows_apart(a, b) == pytest.approx(0.01)


def test_only_our_head_must_keep_a_bound() -> None:
    figures = list(heads.loss_heads("cpu"))
    assert [f["check"] for f in figures if "check" in f] == [
        "loss of ours against float32, 64 wide",
        "its gradient of ours, 64 wide",
    ]
    assert [f["figure"] for f in figures if "figure" in f] == [
        "loss of plain against float32, 64 wide",
        "its gradient of plain, 64 wide",
    ]


def test_targets_are_about_as_likely_as_all_other_tokens_together() -> None:
    torch.manual_seed(0)
    states, weight, targets = heads._drawn(torch.randn(2000, 64) * 0.02, 256)
    logits = states @ weight.T
    assert logits[range(256), targets].mean() == pytest.approx(heads.TARGET, abs=0.1)
    assert logits.median().abs() < 0.1


def test_a_head_that_loses_something_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    known = heads.known_heads

    def worse(device: Any) -> Any:
        found, absent = known(device)
        plain = found["plain"]()
        return found | {"ours": lambda: lambda x, w, t: plain(x[1:], w, t[1:])}, absent

    monkeypatch.setattr(heads, "known_heads", worse)
    assert failing(heads.loss_heads("cpu")) == [
        "loss of ours against float32, 64 wide",
        "its gradient of ours, 64 wide",
    ]
