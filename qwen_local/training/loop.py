"""The training loop, the same for every engine: from a state to the end of the run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from qwen_local.backends.base import Backend, RowTooLargeError
from qwen_local.console.signals import Stopped, Stops
from qwen_local.evaluation.scoring import naming_rows, score, watching_budget
from qwen_local.job.schema import TrainSpec
from qwen_local.rows.planner import epoch_order
from qwen_local.rows.rows import AnyRows, Rows
from qwen_local.runs.events import EvalEvent, TrainEvent
from qwen_local.runs.state import TrainState
from qwen_local.training import stopping
from qwen_local.training.diverged import DivergedError, shortened
from qwen_local.training.recorder import Recorder
from qwen_local.training.schedule import Schedule

ALL_STEPS = "all steps done"
MEMORY_HINT = (
    "set train.gradient_checkpointing=true and resume this run; or start a new run with a lower "
    "data.max_length, model.quantization=4bit or a smaller model"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Training and evaluation rows, each row with its source for error messages."""

    train: AnyRows
    evaluation: AnyRows | None
    train_places: Sequence[str]
    eval_places: Sequence[str]


def train_loop(
    backend: Backend,
    data: Data,
    schedule: Schedule,
    start: TrainState,
    *,
    spec: TrainSpec,
    recorder: Recorder,
    stops: Stops,
) -> tuple[TrainState, str]:
    """Train to the end of the schedule, or until early stopping or a signal ends the run.

    Evaluation rows are scored before the first step, and where the schedule has an evaluation. The
    last state is saved, if there was a step. Without evaluation rows, the last adapter counts as
    the best.

    Args:
        backend: an engine at `start`.
        data: rows.
        schedule: steps, learning rates, evaluations.
        start: state to continue from.
        spec: batch size, seed of the row order, early stopping.
        recorder: gets everything that happens, at `start` as well.
        stops: signals that end the run after the present step.

    Returns:
        The last state, and the reason for the end.

    Raises:
        DivergedError: loss, gradient norm or evaluation loss is not finite.
        OutOfMemoryError: memory does not hold a single row.
        Stopped: a second signal came.
    """
    loop = _Loop(backend, data, schedule, start, spec, recorder, stops)
    recorder.start(start)
    state = start
    while True:
        if loop.evaluation_is_due(state):
            state = loop.evaluate(state)
        reason = loop.reason_to_stop(state)
        if reason is not None:
            break
        state = recorder.save_if_due(state)
        state = loop.step(state)
    if data.evaluation is None and state.step:
        state = replace(state, best_step=state.step)
    if state.step:
        state = recorder.save(state)
    return state, reason


class _Loop:
    """Parts of the loop, each from one state to the next; see `train_loop` for the arguments."""

    def __init__(
        self,
        backend: Backend,
        data: Data,
        schedule: Schedule,
        start: TrainState,
        spec: TrainSpec,
        recorder: Recorder,
        stops: Stops,
    ) -> None:
        self._backend, self._data, self._schedule = backend, data, schedule
        self._start, self._spec = start, spec
        self._recorder, self._stops = recorder, stops
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def evaluation_is_due(self, state: TrainState) -> bool:
        """True if the schedule has an evaluation here that has not been done."""
        schedule = self._schedule
        first = state.step == 0 and bool(schedule.eval_every)
        due = first or schedule.evaluates_after(state.step)
        return due and state.evaluated_step != state.step

    def reason_to_stop(self, state: TrainState) -> str | None:
        """Reason for the end of the run, None to continue."""
        rule = self._spec.early_stopping
        if self._stops.signum is not None:
            return self._stops.name
        if state.step >= self._schedule.steps:
            return ALL_STEPS
        if rule is not None and stopping.exhausted(state.patience, rule):
            return stopping.stopped_because(state.patience, rule, state.best_step)
        return None

    def evaluate(self, state: TrainState) -> TrainState:
        """Score the evaluation rows; a signal abandons this, and resuming repeats it."""
        rows, places = self._data.evaluation, self._data.eval_places
        assert rows is not None
        self._recorder.evaluating()
        started = time.monotonic()
        with self._watching_budget(state.step):
            try:
                # At once, because nothing is lost: an evaluation changes no state.
                with self._stops.at_once():
                    scores = score(self._backend, rows, places, hint=MEMORY_HINT)
            except Stopped:
                if self._stops.twice:
                    raise
                return state
        event = EvalEvent(
            step=state.step,
            loss=scores.mean,
            perplexity=math.exp(min(scores.mean, 700.0)),
            supervised_tokens=rows.supervised,
            seconds=time.monotonic() - started,
        )
        self._recorder.write(event)
        if not math.isfinite(event.loss):
            problem = (
                f"step {event.step}: evaluation loss {event.loss:g} is not finite; the adapter"
            )
            blamed = _blamed(scores.nll_R.tolist(), places)
            raise DivergedError(f"{problem} was not saved", blamed)
        self._recorder.evaluated(event, scores)
        return self._after_evaluation(state, event)

    def _after_evaluation(self, state: TrainState, event: EvalEvent) -> TrainState:
        loss, rule = event.loss, self._spec.early_stopping
        state = replace(
            state,
            evaluated_step=state.step,
            eval_loss=loss,
            evaluation_seconds=state.evaluation_seconds + event.seconds,
            first_eval_loss=loss if state.step == 0 else state.first_eval_loss,
        )
        if rule is not None:
            patience = stopping.after(state.patience, rule, self._schedule, state.step, loss)
            state = replace(state, patience=patience)
        if state.step and (state.best_eval_loss is None or loss < state.best_eval_loss):
            state = replace(state, best_step=state.step, best_eval_loss=loss)
        return state

    def step(self, state: TrainState) -> TrainState:
        """Do an optimizer step."""
        number = state.step + 1
        chosen = self._rows_of_step(state.step)
        rows = self._data.train.take(chosen)
        places = self._data.train_places
        with self._watching_budget(number), naming_rows(places, chosen, hint=MEMORY_HINT):
            # Right after an evaluation the same rows are also scored: training and evaluation must
            # compute the same loss at the same weights, which the health rules check.
            evaluated = state.evaluated_step == state.step
            scored_loss = self._backend.score(rows).mean if evaluated else None
            if state.step == self._start.step:
                self._recorder.first_step()
            started = time.monotonic()
            rate = self._schedule.learning_rate(state.step)
            result = self._backend.step(rows, lr=rate, tokens=rows.supervised)
            took = time.monotonic() - started
        event = TrainEvent(
            step=number,
            epoch=number / self._schedule.steps_per_epoch,
            loss=result.loss_sum / rows.supervised,
            learning_rate=result.learning_rate,
            grad_norm=result.grad_norm,
            tokens=rows.tokens,
            supervised_tokens=rows.supervised,
            computed_tokens=result.positions,
            seconds=took,
            peak_memory_bytes=self._backend.peak_memory_bytes(),
        )
        self._recorder.write(event)
        if not result.finite:
            raise self._diverged(event, rows, [places[i] for i in chosen])
        state = _after_step(state, event, rows, result.loss_sum)
        self._recorder.stepped(
            event, scored_loss=scored_loss, tokens_per_second=self._tokens_per_second(state)
        )
        return state

    def _rows_of_step(self, done: int) -> np.ndarray:
        """Indices of the training rows of the step after `done` steps.

        Their order is a function of (seed, epoch) alone, so a resumed run gets the same rows.
        """
        epoch, place = divmod(done, self._schedule.steps_per_epoch)
        if epoch != self._epoch:
            rows = len(self._data.train)
            self._order = epoch_order(rows, seed=self._spec.seed, epoch=epoch)
            self._epoch = epoch
        size = self._spec.batch_size
        return self._order[place * size : (place + 1) * size]

    def _tokens_per_second(self, state: TrainState) -> float:
        """Speed of this process."""
        return (state.tokens - self._start.tokens) / (state.seconds - self._start.seconds)

    def _watching_budget(self, step: int) -> AbstractContextManager[None]:
        return watching_budget(self._backend, partial(self._recorder.budget_halved, step))

    def _diverged(self, event: TrainEvent, rows: Rows, places: Sequence[str]) -> DivergedError:
        """Make the error, which names the rows that have no finite loss without dropout."""
        problem = (
            f"step {event.step}: loss {event.loss:g} and gradient norm {event.grad_norm:g} are not "
            "both finite; the adapter was not updated"
        )
        try:
            losses = self._backend.score(rows).nll_R.tolist()
        except RowTooLargeError:  # the error that matters is the other one
            losses = [0.0] * len(rows)
        return DivergedError(problem, _blamed(losses, places))


def _after_step(state: TrainState, event: TrainEvent, rows: Rows, loss_sum: float) -> TrainState:
    return replace(
        state,
        step=event.step,
        loss_sum=state.loss_sum + loss_sum,
        supervised_tokens=state.supervised_tokens + rows.supervised,
        tokens=state.tokens + rows.tokens,
        seconds=state.seconds + event.seconds,
        first_loss=event.loss if event.step == 1 else state.first_loss,
        last_loss=event.loss,
    )


def _blamed(losses: Sequence[float], places: Sequence[str]) -> str:
    """Name the rows whose loss is not finite; all rows if there is none."""
    bad = [place for place, loss in zip(places, losses, strict=True) if not math.isfinite(loss)]
    if bad:
        return f"rows whose loss is not finite: {shortened(bad)}"
    return f"the loss of each single row is finite; rows of this step: {shortened(places)}"
