"""The loop, with an engine that learns one number by hand."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pytest import approx

from qwen_local.backends.base import (
    AdapterState,
    Arrays,
    Completion,
    RowTooLargeError,
    Session,
    StepResult,
)
from qwen_local.console.signals import Stopped, Stops
from qwen_local.errors import OutOfMemoryError
from qwen_local.job.schema import TrainSpec
from qwen_local.rows.planner import PADDED, Layout
from qwen_local.rows.rows import Rows
from qwen_local.rows.scores import Scores
from qwen_local.rows.targets import Targets
from qwen_local.runs.eval_rows import EvalRowsWriter, read_eval_rows
from qwen_local.runs.events import EvalEvent, EventWriter, read_events
from qwen_local.runs.state import TrainState
from qwen_local.training.checkpoint_writer import CheckpointWriter
from qwen_local.training.diverged import DivergedError
from qwen_local.training.health import Health
from qwen_local.training.loop import ALL_STEPS, Data, train_loop
from qwen_local.training.progress import Progress
from qwen_local.training.recorder import Recorder
from qwen_local.training.schedule import make_schedule


@dataclass
class ScalarBackend:
    """Minimizes the mean of (w - y)^2 by plain descent; a row is one position with target y."""

    weight: float = 0.0
    trained: list[list[int]] = field(default_factory=list)
    """The targets of each step."""
    scored: list[list[int]] = field(default_factory=list)
    """The targets of each evaluation."""
    micro_batch_tokens: int = 64
    layout: Layout = PADDED

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        y = rows.targets.ids_T
        self.trained.append(y.tolist())
        gradient = 2 * float(np.sum(self.weight - y)) / tokens
        loss_sum = float(np.sum((self.weight - y) ** 2))
        applied = float(np.float32(lr))  # an optimizer may hold less than it was given
        finite = math.isfinite(gradient) and math.isfinite(loss_sum)
        if finite:
            self.weight -= applied * gradient
        return StepResult(loss_sum, abs(gradient), applied, finite, rows.tokens)

    def score(self, rows: Rows) -> Scores:
        self.scored.append(rows.targets.ids_T.tolist())
        return Scores((self.weight - rows.targets.ids_T.astype(np.float64)) ** 2, rows.lengths_R)

    def adapter(self) -> Arrays:
        return {"w": np.array([self.weight], np.float32)}

    def peak_memory_bytes(self) -> int:
        return 8

    def warm_up(self, rows: Rows) -> int:
        raise AssertionError("the loop has no use for this")

    def state(self) -> AdapterState:
        raise AssertionError("the loop has no use for this")

    def load_adapter(self, adapter: Arrays) -> None:
        raise AssertionError("the loop has no use for this")

    def load_state(self, state: AdapterState) -> None:
        raise AssertionError("the loop has no use for this")

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop_ids: Sequence[int]
    ) -> list[Completion]:
        raise AssertionError("the loop has no use for this")

    def session(self) -> Session:
        raise AssertionError("the loop has no use for this")

    def logits(self, ids: Sequence[int], *, last: int) -> np.ndarray:
        raise AssertionError("the loop has no use for this")

    def through_blocks(self, hidden: Sequence[np.ndarray]) -> list[np.ndarray]:
        raise AssertionError("the loop has no use for this")


class Diverging(ScalarBackend):
    """Its weight is no number any more after two steps."""

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        if len(self.trained) == 2:
            self.weight = math.nan
        return ScalarBackend.step(self, rows, lr=lr, tokens=tokens)


def targets(*values: int) -> Rows:
    return Rows.from_pairs(([1], Targets.of([y])) for y in values)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    end: TrainState
    because: str
    saved: list[tuple[int, int]]
    """(step, best step) of every checkpoint."""
    events: list[dict[str, Any]]
    """As JSON objects."""

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for fields in self.events if fields["event"] == event]


class Saves:
    """Notes (step, best step) of each checkpoint."""

    def __init__(self, saved: list[tuple[int, int]]) -> None:
        self._saved = saved

    def save(self, state: TrainState) -> None:
        self._saved.append((state.step, state.best_step))


def run(
    folder: Path,
    backend: ScalarBackend,
    train: Rows,
    evaluation: Rows | None = None,
    *,
    start: TrainState | None = None,
    saved: list[tuple[int, int]] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Train with a constant rate and no warm-up, and to the end, unless told otherwise."""
    plain = {"schedule": "constant", "warmup_steps": 0, "early_stopping": None}
    spec = TrainSpec(**{**plain, **settings})
    saved = [] if saved is None else saved

    recorder = Recorder(
        EventWriter(folder / "metrics.jsonl"),
        cast(CheckpointWriter, Saves(saved)),
        EvalRowsWriter(
            folder / "eval_rows.safetensors",
            evaluated=None if start is None else start.evaluated_step,
        ),
        progress=progress or Progress(1, quiet=True),
        health=Health(10**9),
        save_every=spec.save_every,
    )
    with recorder, Stops(quiet=True) as stops:
        end, because = train_loop(
            backend,
            Data(
                train=train,
                evaluation=evaluation,
                train_places=[f"train.jsonl:{line + 1}" for line in range(len(train))],
                eval_places=[] if evaluation is None else ["eval.jsonl:1"] * len(evaluation),
            ),
            make_schedule(spec, rows=len(train), eval_rows=0 if evaluation is None else 1),
            start or TrainState(),
            spec=spec,
            recorder=recorder,
            stops=stops,
        )
    return Run(end, because, saved, events_in(folder))


def events_in(folder: Path) -> list[dict[str, Any]]:
    events = read_events(folder / "metrics.jsonl")
    return [{"event": event.KIND, **event.to_json()} for event in events]


class Shown(Progress):
    """Notes the speed that is shown, and when the clock was started."""

    def __init__(self) -> None:
        super().__init__(1, quiet=True)
        self.calls: list[str | float] = []

    def start(self) -> None:
        self.calls.append("started")

    def stepped(self, step: int, loss: float, rate: float, tokens_per_second: float) -> None:
        self.calls.append(tokens_per_second)

    def evaluated(self, step: int, loss: float) -> None:
        self.calls.append("evaluated")


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
    held_out = [rows for rows in backend.scored if rows == [3, 5]]
    assert len(held_out) == 4
    # Beside them, the rows of the step that follows each: seen by training and evaluation alike.
    assert [rows for rows in backend.scored if rows != [3, 5]] == [[4]] * 3


def test_the_best_adapter_is_kept_and_not_the_last_where_the_evaluation_rises(
    tmp_path: Path,
) -> None:
    """w goes 0, 2, 3.6, 4.88, ... to 10, and past 4 on its way."""
    done = run(
        tmp_path, ScalarBackend(), targets(10), targets(4), steps=5, learning_rate=0.1, eval_every=1
    )
    assert done.saved == [(1, 1), (2, 2), (5, 2)]
    assert done.end.best_eval_loss == approx(0.4**2)
    assert done.end.eval_loss == approx((10 * (1 - 0.8**5) - 4) ** 2)


def test_the_start_is_never_the_best_even_where_nothing_gets_better(tmp_path: Path) -> None:
    done = run(
        tmp_path, ScalarBackend(), targets(10), targets(0), steps=3, learning_rate=0.1, eval_every=1
    )
    losses = [event["loss"] for event in done.of("eval")]
    assert min(losses) == losses[0] == 0.0
    assert (done.end.best_step, done.end.first_eval_loss) == (1, 0.0)
    assert done.saved == [(1, 1), (3, 1)]


def test_without_an_evaluation_set_the_last_adapter_is_kept(tmp_path: Path) -> None:
    backend = ScalarBackend()
    done = run(tmp_path, backend, targets(1, 7), steps=4, batch_size=2, learning_rate=0.1)
    assert (done.saved, done.because) == ([(4, 4)], ALL_STEPS)
    assert done.end.best_eval_loss is None and done.end.eval_loss is None
    assert backend.scored == []


def test_checkpoints_come_as_often_as_asked_and_once_at_a_step(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        ScalarBackend(),
        targets(10),
        targets(4),
        steps=6,
        learning_rate=0.1,
        eval_every=2,
        save_every=3,
    )
    assert done.saved == [(2, 2), (3, 2), (6, 2)]


def test_a_run_goes_on_from_any_step_with_the_rows_that_would_have_come(tmp_path: Path) -> None:
    rows, whole = targets(*range(1, 12)), ScalarBackend()
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 0.01}
    run(tmp_path, whole, rows, **settings)
    for step in range(7):
        rest, folder = ScalarBackend(), tmp_path / str(step)
        folder.mkdir()
        done = run(folder, rest, rows, start=TrainState(step=step), **settings)
        assert rest.trained == whole.trained[step:]
        assert [event["step"] for event in done.of("train")] == list(range(step + 1, 7))


# --- the end before the end ---


def test_a_run_stops_where_evaluation_no_longer_gains(tmp_path: Path) -> None:
    """w passes 4 on its way from 0 to 10 between steps 2 and 3."""
    from qwen_local.job.schema import EarlyStopping

    done = run(
        tmp_path,
        ScalarBackend(),
        targets(10),
        targets(4),
        steps=50,
        learning_rate=0.1,
        eval_every=1,
        early_stopping=EarlyStopping(patience=2),
    )
    assert done.because == ("early stopping: 2 evaluations in a row without a gain, best at step 2")
    # Two without a gain after step 2, but none counts before a tenth of the steps or an epoch.
    assert (done.end.step, done.end.best_step, done.saved[-1]) == (4, 2, (4, 2))


class Interrupted(ScalarBackend):
    """A signal comes while it computes its third step, and one while it scores if `scoring`."""

    scoring = False

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        if len(self.trained) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return ScalarBackend.step(self, rows, lr=lr, tokens=tokens)

    def score(self, rows: Rows) -> Scores:
        if self.scoring and self.trained:
            os.kill(os.getpid(), signal.SIGHUP)
        return ScalarBackend.score(self, rows)


def test_a_signal_lets_the_step_finish_and_saves_it(tmp_path: Path) -> None:
    backend = Interrupted()
    done = run(tmp_path, backend, targets(4), targets(4), steps=9, learning_rate=0.1, eval_every=3)
    assert (done.because, done.end.step, len(backend.trained)) == ("SIGTERM", 3, 3)
    assert done.saved == [(3, 0)]
    assert [event["step"] for event in done.of("eval")] == [0]  # step 3's is left for later


@pytest.mark.slow
def test_an_evaluation_is_given_up_for_a_signal_and_made_up_for_later(tmp_path: Path) -> None:
    backend = Interrupted()
    backend.scoring = True
    settings: dict[str, Any] = {"steps": 4, "learning_rate": 0.1, "eval_every": 2}
    done = run(tmp_path, backend, targets(4), targets(4), **settings)
    assert (done.because, done.end.step, done.end.evaluated_step) == ("SIGHUP", 2, 0)
    later = ScalarBackend(weight=backend.weight)
    run(tmp_path, later, targets(4), targets(4), start=done.end, **settings)
    evaluated = read_events(tmp_path / "metrics.jsonl", EvalEvent)
    assert [event.step for event in evaluated] == [0, 2, 4]


class Impatient(ScalarBackend):
    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)  # a session that closes sends both
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal ends it at once")


@pytest.mark.slow
def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    saved: list[tuple[int, int]] = []
    with pytest.raises(Stopped) as stopped:
        run(tmp_path, Impatient(), targets(4), steps=9, learning_rate=0.1, saved=saved)
    assert (stopped.value.exit_code, saved) == (130, [])


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
    assert not done.of("warning")
    seconds = [event.pop("seconds") for event in done.events]
    assert all(taken >= 0 for taken in seconds)
    same = {"learning_rate": 0.25, "peak_memory_bytes": 8}
    counts = (
        {"tokens": 2, "supervised_tokens": 2, "computed_tokens": 2},
        {"tokens": 1, "supervised_tokens": 1, "computed_tokens": 1},
    )
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


def test_each_row_of_an_evaluation_has_its_loss_recorded(tmp_path: Path) -> None:
    run(
        tmp_path,
        ScalarBackend(),
        targets(4),
        targets(3, 5),
        steps=2,
        learning_rate=0.25,
        eval_every=1,
    )
    rows = read_eval_rows(tmp_path / "eval_rows.safetensors")
    assert rows is not None
    assert rows.steps_E.tolist() == [0, 1, 2]
    assert rows.tokens_R.tolist() == [1, 1]
    w = 0.0, 2.0, 3.0  # half of the way to 4 at each step
    assert rows.nll_ER.tolist() == [[(3 - at) ** 2, (5 - at) ** 2] for at in w]


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
    assert done.end.loss_sum == 3 * 4.0 + 1 * 1.0
    assert (done.end.first_loss, done.end.last_loss) == (4.0, 1.0)
    assert (done.end.step, done.end.tokens, done.end.supervised_tokens) == (2, 4, 4)


def test_an_evaluation_loss_beyond_all_floats_has_a_perplexity_all_the_same(tmp_path: Path) -> None:
    done = run(tmp_path, ScalarBackend(), targets(1), targets(99), steps=1, learning_rate=0.1)
    assert done.of("eval")[0]["perplexity"] == math.exp(700)


def test_the_clock_of_what_is_left_starts_after_the_evaluation_before_the_first_step(
    tmp_path: Path,
) -> None:
    shown = Shown()
    run(tmp_path, ScalarBackend(), targets(4), targets(4), progress=shown, steps=2, eval_every=1)
    assert [said for said in shown.calls if isinstance(said, str)] == [
        "evaluated",
        "started",
        "evaluated",
        "evaluated",
    ]


def test_the_speed_that_is_told_is_that_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count()  # a step looks at it twice: it takes a second
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    shown = Shown()
    start = TrainState(step=7, tokens=10_000, seconds=1000.0)
    done = run(
        tmp_path, ScalarBackend(), targets(1, 2, 3), start=start, progress=shown, steps=9,
        batch_size=3, save_every=100,
    )  # fmt: skip
    assert shown.calls == ["started", 3.0, 3.0]
    assert (done.end.tokens, done.end.seconds) == (10_006, 1002.0)


# --- divergence ---


def test_a_step_that_is_not_finite_ends_the_run_with_its_step_and_the_mend(tmp_path: Path) -> None:
    saved: list[tuple[int, int]] = []
    with pytest.raises(DivergedError) as raised:
        run(
            tmp_path,
            Diverging(),
            targets(4),
            targets(4),
            saved=saved,
            steps=9,
            learning_rate=0.1,
            eval_every=1,
        )
    assert str(raised.value) == (
        "step 3: loss nan and gradient norm nan are not both finite; the adapter was not updated"
        "\n\nrows whose loss is not finite: train.jsonl:1"
        "\n\nhint: start a new run with a lower train.learning_rate, or in float32 (model.dtype)"
    )
    assert raised.value.exit_code == 4
    assert saved == [(1, 1), (2, 2)]
    last = events_in(tmp_path)[-1]
    assert (last["event"], last["step"], last["loss"]) == ("train", 3, None)


def test_without_an_evaluation_set_nothing_is_kept_of_a_run_that_diverged(tmp_path: Path) -> None:
    saved: list[tuple[int, int]] = []
    with pytest.raises(DivergedError):
        run(tmp_path, Diverging(), targets(4), saved=saved, steps=9, learning_rate=0.1)
    assert saved == []


def test_an_evaluation_that_is_not_finite_ends_the_run_and_keeps_nothing(tmp_path: Path) -> None:
    backend, saved = ScalarBackend(weight=math.inf), list[tuple[int, int]]()
    with pytest.raises(DivergedError) as raised:
        run(tmp_path, backend, targets(4), targets(4), saved=saved, steps=2, learning_rate=0.1)
    assert str(raised.value) == (
        "step 0: evaluation loss inf is not finite; the adapter was not saved\n\n"
        "rows whose loss is not finite: eval.jsonl:1\n\n"
        "hint: start a new run with a lower train.learning_rate, or in float32 (model.dtype)"
    )
    assert (backend.trained, saved) == ([], [])


class Overflowing(ScalarBackend):
    """Its gradient alone is not finite."""

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        return StepResult(1.0, math.inf, lr, False, rows.tokens)


def test_where_every_row_has_a_finite_loss_all_rows_of_the_step_are_named(tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as raised:
        run(tmp_path, Overflowing(), targets(*range(11)), batch_size=11, steps=1)
    named = str(raised.value).split("\n\n")[1]
    assert named.startswith("the loss of each single row is finite; rows of this step: ")
    assert named.endswith(" and 3 more")


# --- memory ---


class Shrinking(ScalarBackend):
    """Memory runs out in its second step, which it repeats with half the budget."""

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        if len(self.trained) == 1:
            self.micro_batch_tokens //= 2
        return ScalarBackend.step(self, rows, lr=lr, tokens=tokens)


def test_a_smaller_budget_is_an_event_of_its_step(tmp_path: Path) -> None:
    done = run(tmp_path, Shrinking(), targets(4), steps=3, learning_rate=0.1)
    assert done.of("memory") == [{"event": "memory", "step": 2, "micro_batch_tokens": 32}]


class Full(ScalarBackend):
    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        raise RowTooLargeError(rows.targets.ids_T.tolist().index(3), 1234)


def test_a_row_that_memory_does_not_hold_is_named_with_its_length(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError) as raised:
        run(tmp_path, Full(), targets(1, 2, 3), batch_size=3, steps=1)
    assert str(raised.value) == (
        "out of memory: train.jsonl:3 alone does not fit, a row of 1,234 tokens\n\n"
        "hint: set train.gradient_checkpointing=true and resume this run; or start a new run with "
        "a lower data.max_length, model.quantization=4bit or a smaller model"
    )
    assert raised.value.exit_code == 5
