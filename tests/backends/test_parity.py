"""Promise 1: same job, same curve; promise 5: memory cannot change the mathematics.

The rule of promise 1: over 100 steps in float32, unquantized, dropout 0, learning rate <= 1e-3,
per-step mean losses a and b satisfy |a - b| / max(|b|, 0.1) <= 1e-4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_local.backends.base import Backend
from qwen_local.backends.machine import Engine
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import ModelFiles
from qwen_local.rows.rows import Rows
from qwen_local.runs.curves import largest_difference

STEPS = 100
BATCH = 8
RATE = 1e-3
BOUND = 1e-4

OpenEngine = Callable[..., Backend]
MakeModel = Callable[[str, bool], ModelFiles]
MakeRows = Callable[..., Rows]


def batches(rows: Rows) -> Iterator[Rows]:
    """Rows in their order, again and again."""
    while True:
        for start in range(0, len(rows), BATCH):
            yield rows.take(range(start, start + BATCH))


def curve(backend: Backend, rows: Rows, *, start: int = 0, steps: int = STEPS) -> list[float]:
    """Mean loss of each step."""
    losses = []
    for batch in islice(batches(rows), start, start + steps):
        result = backend.step(batch, lr=RATE, tokens=batch.supervised)
        assert result.finite
        losses.append(result.loss_sum / batch.supervised)
    return losses


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_both_engines_follow_the_same_curve(
    model_type: str,
    tied: bool,
    random_model: MakeModel,
    random_rows: MakeRows,
    open_engine: OpenEngine,
) -> None:
    model, rows = random_model(model_type, tied), random_rows(64)
    a, b = (
        curve(open_engine(engine, model, micro_batch_tokens=60), rows) for engine in ("mlx", "cuda")
    )
    assert a[-1] < a[0] - 0.1  # something was learned
    assert largest_difference(a, b) <= BOUND


def test_the_first_step_is_that_of_transformers_own_loss(
    engine: Engine, random_model: MakeModel, random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    """The oracle: full logits, torch's cross-entropy, one row at a time, mean over all tokens."""
    import peft
    import torch
    import transformers

    model, rows = random_model("qwen3", True), random_rows(8)
    backend = open_engine(engine, model, micro_batch_tokens=60)
    base = transformers.AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    plain = peft.get_peft_model(base, config)
    peft.set_peft_model_state_dict(
        plain, {name: torch.from_numpy(array) for name, array in backend.adapter().items()}
    )
    total = torch.zeros(())
    for r in range(len(rows)):
        row = rows.take([r])
        ids, targets = (torch.from_numpy(a).long() for a in (row.ids_T, row.targets.ids_T))
        logits = plain(input_ids=ids[None]).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    (total / rows.supervised).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in plain.parameters() if p.grad is not None])
    result = backend.step(rows, lr=RATE, tokens=rows.supervised)
    assert result.loss_sum == pytest.approx(total.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-5)


def test_a_split_of_the_step_into_micro_batches_does_not_change_the_curve(
    engine: Engine, random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    width = 16
    rows = random_rows(64, shortest=width, longest=width)
    curves = {
        size: curve(open_engine(engine, micro_batch_tokens=size * width), rows)
        for size in (8, 4, 2, 1)  # 1x8, 2x4, 4x2, 8x1
    }
    for size in (4, 2, 1):
        assert largest_difference(curves[size], curves[8]) <= BOUND


def test_decay_clipping_and_a_larger_scale_are_the_same_on_both_engines(
    random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    rows = random_rows(64)
    settings: dict[str, Any] = {
        "lora": LoraSpec(
            rank=4, alpha=16, dropout=0.0, targets=("q_proj", "down_proj"), layers=2, rslora=True
        ),
        "weight_decay": 0.1,
        "max_grad_norm": 0.05,
    }
    a, b = (curve(open_engine(engine, **settings), rows) for engine in ("mlx", "cuda"))
    plain = curve(open_engine("cuda", **{**settings, "max_grad_norm": None}), rows)
    assert largest_difference(a, b) <= BOUND
    assert largest_difference(plain, b) > BOUND  # the clipping above did clip


def test_a_run_that_changes_engines_goes_on_along_the_same_curve(
    random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    rows = random_rows(64)
    whole = curve(open_engine("cuda"), rows)
    first = open_engine("mlx")
    moved = curve(first, rows, steps=30)
    second = open_engine("cuda", seed=1)  # another start, which the state replaces
    second.load_state(first.state())
    moved += curve(second, rows, start=30, steps=30)
    third = open_engine("mlx", seed=2)
    third.load_state(second.state())
    moved += curve(third, rows, start=60, steps=40)
    assert third.state().steps == STEPS
    assert largest_difference(moved, whole) <= BOUND


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_activations_change_nothing(
    dropout: float, engine: Engine, random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    """With dropout, too: a block that is computed again must draw the masks that it drew before."""
    rows, lora = random_rows(16), LoraSpec(rank=8, dropout=dropout)
    kept, again = (
        open_engine(engine, lora=lora, gradient_checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    assert largest_difference(curve(again, rows, steps=10), curve(kept, rows, steps=10)) <= 1e-6
    for name, array in kept.adapter().items():
        np.testing.assert_allclose(again.adapter()[name], array, atol=1e-5)


def test_dropout_follows_from_the_seed_and_the_step_alone(
    engine: Engine, random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    rows, lora = random_rows(16), LoraSpec(rank=8, dropout=0.3)
    one, two = (curve(open_engine(engine, lora=lora), rows, steps=12) for _ in range(2))
    assert one == two
    assert curve(open_engine(engine, lora=lora, seed=1), rows, steps=12) != one
    begun = open_engine(engine, lora=lora)
    curve(begun, rows, steps=5)
    resumed = open_engine(engine, lora=lora)
    resumed.load_state(begun.state())
    assert curve(resumed, rows, start=5, steps=7) == one[5:]


def test_dropout_is_off_when_rows_are_scored(
    engine: Engine, random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    rows = random_rows(8)
    backend = open_engine(engine, lora=LoraSpec(rank=8, dropout=0.5))
    curve(backend, rows, steps=3)
    sure = open_engine(engine, lora=LoraSpec(rank=8, dropout=0.0))
    sure.load_adapter(backend.adapter())
    np.testing.assert_array_equal(backend.score(rows).nll_R, sure.score(rows).nll_R)


def test_scores_agree_between_engines_row_by_row(
    random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    rows = random_rows(12)
    a, b = (open_engine(e, micro_batch_tokens=60).score(rows) for e in ("mlx", "cuda"))
    np.testing.assert_allclose(a.nll_R, b.nll_R, rtol=1e-5)
    np.testing.assert_array_equal(a.tokens_R, b.tokens_R)
    assert a.tokens_R.sum() == rows.supervised


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_along_the_float32_curve_with_a_float32_adapter(
    dtype: str, engine: Engine, random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    rows = random_rows(64)
    exact = curve(open_engine(engine), rows, steps=20)
    backend = open_engine(engine, dtype=dtype)
    assert largest_difference(curve(backend, rows, steps=20), exact) < 1e-2
    assert {array.dtype for array in backend.adapter().values()} == {np.dtype(np.float32)}


def test_a_step_that_is_not_finite_leaves_the_adapter_alone(
    engine: Engine, random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    rows = random_rows(8)
    backend = open_engine(engine)
    curve(backend, rows, steps=2)
    before = backend.state()
    huge = dict(before.adapter)
    name = next(name for name in huge if ".lora_B." in name)
    huge[name] = np.full_like(huge[name], 1e38)  # finite itself, and then times its scale
    state = replace(before, adapter=huge)
    backend.load_state(state)
    result = backend.step(rows, lr=RATE, tokens=rows.supervised)
    assert not result.finite
    after = backend.state()
    assert after.steps == 2
    for old, new in (
        (state.adapter, after.adapter),
        (state.exp_avg, after.exp_avg),
        (state.exp_avg_sq, after.exp_avg_sq),
    ):
        for name, array in old.items():
            np.testing.assert_array_equal(new[name], array)


def test_the_learning_rate_is_read_back_from_the_optimizer(
    engine: Engine, random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    rows = random_rows(8)
    result = open_engine(engine).step(rows, lr=1.5e-4, tokens=rows.supervised)
    assert result.learning_rate == pytest.approx(1.5e-4, rel=1e-6)


def test_a_model_that_asks_for_another_way_of_generating_is_answered_greedily(
    engine: Engine, random_model: MakeModel, open_engine: OpenEngine, tmp_path: Path
) -> None:
    """A `generation_config.json` with a repetition penalty, as Qwen's are, is not greedy."""
    model = random_model("qwen3", True)
    for file in model.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 5.0}))
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5, 4]]
    plain, other = (
        open_engine(engine, replace(model, folder=folder)).generate(
            prompts, max_tokens=8, stop_ids=[1]
        )
        for folder in (model.folder, tmp_path)
    )
    assert plain == other


def test_greedy_answers_are_the_same_on_both_engines_and_in_any_company(
    random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    rows = random_rows(8)
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [11]]
    answers = {}
    for engine in ("mlx", "cuda"):
        backend = open_engine(engine)
        curve(backend, rows, steps=20)
        answers[engine] = backend.generate(prompts, max_tokens=6, stop_ids=[1])
        alone = [backend.generate([p], max_tokens=6, stop_ids=[1])[0] for p in prompts]
        assert answers[engine] == alone
    assert answers["mlx"] == answers["cuda"]
    assert all(answer.finish_reason == "length" for answer in answers["mlx"])
    stop = answers["cuda"][0].ids[2]
    for engine in ("mlx", "cuda"):
        backend = open_engine(engine)
        curve(backend, rows, steps=20)
        (cut,) = backend.generate(prompts[:1], max_tokens=6, stop_ids=[1, stop])
        at = answers["cuda"][0].ids.index(stop)
        assert cut.ids == answers["cuda"][0].ids[:at]
        assert cut.finish_reason == "stop"
