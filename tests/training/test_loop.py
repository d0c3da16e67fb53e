"""The loop, with an engine that learns one number by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest import approx

from qwen_local.backends.base import Arrays, Completion, Scores, Session, State, StepResult
from qwen_local.job import TrainSpec
from qwen_local.rows import Rows
from qwen_local.training.loop import DivergedError, Outcome, train_loop
from qwen_local.training.metrics import Metrics, read_metrics
from qwen_local.training.progress import Progress
from qwen_local.training.schedule import make_schedule


@dataclass
class ScalarBackend:
    """Minimises the mean of (w - y)^2 by plain descent; a row is one position with target y."""

    weight: float = 0.0
    trained: list[list[int]] = field(default_factory=list)
    """The targets of each step."""
    scored: list[list[int]] = field(default_factory=list)
    """The targets of each evaluation."""

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        y = rows.targets_T
        self.trained.append(y.tolist())
        gradient = 2 * float(np.sum(self.weight - y)) / tokens
        loss_sum = float(np.sum((self.weight - y) ** 2))
        applied = float(np.float32(lr))  # an optimizer may hold less than it was given
        finite = math.isfinite(gradient) and math.isfinite(loss_sum)
        if finite:
            self.weight -= applied * gradient
        return StepResult(loss_sum, abs(gradient), applied, finite)

    def score(self, rows: Rows) -> Scores:
        self.scored.append(rows.targets_T.tolist())
        return Scores((self.weight - rows.targets_T.astype(np.float64)) ** 2, rows.lengths_R)

    def adapter(self) -> Arrays:
        return {"w": np.array([self.weight], np.float32)}

    def peak_memory_bytes(self) -> int:
        return 8

    def state(self) -> State:
        raise AssertionError("the loop has no use for this")

    def load_adapter(self, adapter: Arrays) -> None:
        raise AssertionError("the loop has no use for this")

    def load_state(self, state: State) -> None:
        raise AssertionError("the loop has no use for this")

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop_ids: Sequence[int]
    ) -> list[Completion]:
        raise AssertionError("the loop has no use for this")

    def session(self) -> Session:
        raise AssertionError("the loop has no use for this")

    def logits(self, ids: Sequence[int], *, last: int) -> np.ndarray:
        raise AssertionError("the loop has no use for this")

    def put_weights(self, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
        raise AssertionError("the loop has no use for this")


class Diverging(ScalarBackend):
    """Its weight is no number any more after two steps."""

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        if len(self.trained) == 2:
            self.weight = math.nan
        return ScalarBackend.step(self, rows, lr=lr, tokens=tokens)


def targets(*values: int) -> Rows:
    return Rows.from_pairs(([1], [y]) for y in values)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    outcome: Outcome
    kept: list[tuple[int, float]]
    """(step, weight) of every adapter that was kept."""
    events: list[dict[str, Any]]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for fields in self.events if fields["event"] == event]


def run(
    folder: Path,
    backend: ScalarBackend,
    train: Rows,
    evaluation: Rows | None = None,
    *,
    kept: list[tuple[int, float]] | None = None,
    **settings: Any,
) -> Run:
    """Train with a constant rate and no warm-up, unless told otherwise."""
    spec = TrainSpec(**{"schedule": "constant", "warmup_steps": 0, **settings})
    kept = [] if kept is None else kept

    def keep(step: int, arrays: Mapping[str, np.ndarray]) -> None:
        kept.append((step, float(arrays["w"][0])))

    with Metrics(folder / "metrics.jsonl") as metrics:
        outcome = train_loop(
            backend,
            train,
            evaluation,
            make_schedule(spec, rows=len(train), eval_rows=0 if evaluation is None else 1),
            batch_size=spec.batch_size,
            seed=spec.seed,
            metrics=metrics,
            progress=Progress(1, quiet=True),
            keep=keep,
        )
    return Run(outcome, kept, list(read_metrics(folder / "metrics.jsonl")))


# --- what is trained, and in which order ---


def test_a_step_goes_down_the_mean_of_its_rows(tmp_path: Path) -> None:
    backend = ScalarBackend()
    run(tmp_path, backend, targets(1, 2, 3, 9), steps=1, batch_size=4, learning_rate=0.1)
    assert backend.weight == approx(0.1 * 2 * (1 + 2 + 3 + 9) / 4)


def test_every_row_comes_once_in_every_epoch(tmp_path: Path) -> None:
    backend = ScalarBackend()
    run(tmp_path, backend, targets(*range(1, 12)), epochs=3, batch_size=4, learning_rate=0.01)
    for epoch in range(3):
        steps = backend.trained[3 * epoch : 3 * epoch + 3]
        assert sorted(chain.from_iterable(steps)) == list(range(1, 12))


def test_the_last_step_of_an_epoch_has_the_rows_that_are_left(tmp_path: Path) -> None:
    backend = ScalarBackend()
    run(tmp_path, backend, targets(*range(1, 12)), epochs=2, batch_size=4, learning_rate=0.01)
    assert [len(step) for step in backend.trained] == [4, 4, 3, 4, 4, 3]


def test_the_order_changes_from_epoch_to_epoch_and_with_the_seed_and_nothing_else(
    tmp_path: Path,
) -> None:
    rows, orders = targets(*range(1, 12)), []
    for number, (seed, batch_size, rate) in enumerate(
        [(5, 11, 0.01), (5, 11, 0.3), (5, 1, 0.01), (6, 11, 0.01)]
    ):
        backend, folder = ScalarBackend(), tmp_path / str(number)
        folder.mkdir()
        run(folder, backend, rows, epochs=2, seed=seed, batch_size=batch_size, learning_rate=rate)
        orders.append(list(chain.from_iterable(backend.trained)))
    assert orders[0] == orders[1] == orders[2] != orders[3]
    assert orders[0][:11] != orders[0][11:]


def test_steps_instead_of_epochs_go_on_into_the_next_epoch_and_stop_there(tmp_path: Path) -> None:
    backend = ScalarBackend()
    run(tmp_path, backend, targets(*range(1, 12)), steps=5, batch_size=4, learning_rate=0.01)
    assert [len(step) for step in backend.trained] == [4, 4, 3, 4, 4]


# --- evaluation, and which adapter is kept ---


def test_evaluation_comes_first_then_as_often_as_asked_and_last_on_the_same_rows(
    tmp_path: Path,
) -> None:
    backend = ScalarBackend()
    done = run(
        tmp_path, backend, targets(4), targets(3, 5), steps=5, learning_rate=0.1, eval_every=2
    )
    assert [event["step"] for event in done.of("eval")] == [0, 2, 4, 5]
    assert backend.scored == [[3, 5]] * 4


def test_the_best_adapter_is_kept_and_not_the_last_where_the_evaluation_rises(
    tmp_path: Path,
) -> None:
    """w goes 0, 2, 3.6, 4.88, ... to 10, and past 4 on its way."""
    done = run(
        tmp_path, ScalarBackend(), targets(10), targets(4), steps=5, learning_rate=0.1, eval_every=1
    )
    assert [step for step, _ in done.kept] == [1, 2]
    assert [weight for _, weight in done.kept] == approx([2.0, 3.6])
    assert done.outcome.best_step == 2
    assert done.outcome.best_eval_loss == approx(0.4**2)
    assert done.outcome.eval_loss == approx((10 * (1 - 0.8**5) - 4) ** 2)


def test_the_start_is_never_the_best_even_where_nothing_gets_better(tmp_path: Path) -> None:
    done = run(
        tmp_path, ScalarBackend(), targets(10), targets(0), steps=3, learning_rate=0.1, eval_every=1
    )
    losses = [event["loss"] for event in done.of("eval")]
    assert min(losses) == losses[0] == 0.0
    assert (done.outcome.best_step, done.kept) == (1, [(1, 2.0)])


def test_without_an_evaluation_set_the_last_adapter_is_kept(tmp_path: Path) -> None:
    backend = ScalarBackend()
    done = run(tmp_path, backend, targets(1, 7), steps=4, batch_size=2, learning_rate=0.1)
    assert done.kept == [(4, float(np.float32(backend.weight)))]
    assert done.outcome.best_step == 4
    assert done.outcome.best_eval_loss is None and done.outcome.eval_loss is None
    assert backend.scored == []


# --- what is told ---


def test_every_step_and_evaluation_is_an_event_with_all_of_its_fields_in_order(
    tmp_path: Path,
) -> None:
    done = run(
        tmp_path,
        ScalarBackend(),
        targets(4, 4, 4),
        targets(3),
        epochs=1,
        batch_size=2,
        learning_rate=0.25,
        eval_every=1,
    )
    seconds = [event.pop("seconds") for event in done.events]
    assert all(taken >= 0 for taken in seconds)
    same = {"learning_rate": 0.25, "peak_memory_bytes": 8}
    counts = {"tokens": 2, "supervised_tokens": 2}, {"tokens": 1, "supervised_tokens": 1}
    w = 0.0, 2.0, 3.0  # half of the way to 4 at each step
    loss = [(4 - w[0]) ** 2, (4 - w[1]) ** 2]
    norm = [2 * (4 - w[0]), 2 * (4 - w[1])]
    assert done.events == [
        _evaluated(0, (3 - w[0]) ** 2),
        {"event": "train", "step": 1, "epoch": 0.5, "loss": loss[0], "grad_norm": norm[0]}
        | counts[0]
        | same,
        _evaluated(1, (3 - w[1]) ** 2),
        {"event": "train", "step": 2, "epoch": 1.0, "loss": loss[1], "grad_norm": norm[1]}
        | counts[1]
        | same,
        _evaluated(2, (3 - w[2]) ** 2),
    ]


def _evaluated(step: int, loss: float) -> dict[str, Any]:
    return {
        "event": "eval",
        "step": step,
        "loss": loss,
        "perplexity": math.exp(loss),
        "supervised_tokens": 1,
    }


def test_the_rate_in_the_log_is_the_one_that_the_optimizer_held(tmp_path: Path) -> None:
    done = run(tmp_path, ScalarBackend(), targets(4), steps=1, learning_rate=0.1)
    assert done.of("train")[0]["learning_rate"] == float(np.float32(0.1)) != 0.1


def test_the_rates_follow_the_schedule(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        ScalarBackend(),
        targets(4),
        steps=4,
        learning_rate=0.5,
        schedule="linear",
        warmup_steps=2,
    )
    assert [event["learning_rate"] for event in done.of("train")] == [0.0, 0.25, 0.5, 0.25]


def test_the_mean_loss_of_a_run_is_over_tokens_and_not_over_steps(tmp_path: Path) -> None:
    """Three rows, then one: a mean of the two steps' means would weigh the one row thrice."""
    backend = ScalarBackend()
    done = run(tmp_path, backend, targets(2, 2, 2, 2), epochs=1, batch_size=3, learning_rate=0.25)
    assert [event["loss"] for event in done.of("train")] == [4.0, 1.0]
    assert done.outcome.train_loss == (3 * 4.0 + 1 * 1.0) / 4
    assert (done.outcome.first_loss, done.outcome.last_loss) == (4.0, 1.0)
    assert (done.outcome.steps, done.outcome.tokens, done.outcome.supervised_tokens) == (2, 4, 4)


def test_an_evaluation_loss_beyond_all_floats_has_a_perplexity_all_the_same(tmp_path: Path) -> None:
    done = run(tmp_path, ScalarBackend(), targets(1), targets(99), steps=1, learning_rate=0.1)
    assert done.of("eval")[0]["perplexity"] == math.exp(700)


# --- divergence ---


def test_a_step_that_is_not_finite_ends_the_run_with_its_step_and_the_mend(tmp_path: Path) -> None:
    kept: list[tuple[int, float]] = []
    with pytest.raises(DivergedError) as raised:
        run(
            tmp_path,
            Diverging(),
            targets(4),
            targets(4),
            kept=kept,
            steps=9,
            learning_rate=0.1,
            eval_every=1,
        )
    assert str(raised.value) == (
        "step 3: loss nan and gradient norm nan are not both finite; the adapter was not updated"
        "\n\nhint: lower train.learning_rate, or train in float32 (model.dtype)"
    )
    assert raised.value.exit_code == 4
    assert [step for step, _ in kept] == [1, 2]
    last = list(read_metrics(tmp_path / "metrics.jsonl"))[-1]
    assert (last["event"], last["step"], last["loss"]) == ("train", 3, None)


def test_without_an_evaluation_set_nothing_is_kept_of_a_run_that_diverged(tmp_path: Path) -> None:
    kept: list[tuple[int, float]] = []
    with pytest.raises(DivergedError):
        run(tmp_path, Diverging(), targets(4), kept=kept, steps=9, learning_rate=0.1)
    assert kept == []


def test_an_evaluation_that_is_not_finite_ends_the_run_and_keeps_nothing(tmp_path: Path) -> None:
    backend, kept = ScalarBackend(weight=math.inf), list[tuple[int, float]]()
    with pytest.raises(DivergedError) as raised:
        run(tmp_path, backend, targets(4), targets(4), kept=kept, steps=2, learning_rate=0.1)
    assert str(raised.value) == (
        "step 0: evaluation loss inf is not finite; the adapter was not kept\n\n"
        "hint: lower train.learning_rate, or train in float32 (model.dtype)"
    )
    assert (backend.trained, kept) == ([], [])
