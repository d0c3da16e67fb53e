"""The loop: one flat pass from where a run stands to its end, the same for every engine."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qwen_local.backends.base import Backend, RowTooLargeError
from qwen_local.console.signals import Stopped, Stops
from qwen_local.errors import OutOfMemoryError, QwenLocalError
from qwen_local.job.schema import EarlyStopping
from qwen_local.rows.planner import epoch_order
from qwen_local.rows.rows import AnyRows, Rows
from qwen_local.rows.scores import Scores
from qwen_local.runs.events import Metrics
from qwen_local.runs.state import Standing
from qwen_local.training import stopping
from qwen_local.training.health import Concern, Health
from qwen_local.training.progress import Progress
from qwen_local.training.schedule import Schedule

log = logging.getLogger("qwen_local")

ALL_STEPS = "all steps done"
CALMER = "hint: begin another run with a lower train.learning_rate, or in float32 (model.dtype)"
SMALLER = (
    "hint: set train.gradient_checkpointing=true, with which this run can be resumed; or begin "
    "another with a lower data.max_length, model.quantization=4bit or a smaller model"
)
SAVE_SECONDS = 600.0
"""`train.save_every: auto`: the most work that a power cut may cost."""
SCORED_AT_ONCE = 1024
"""Rows held out that are in memory together, and what is done again where memory runs out."""
ROWS_NAMED = 8
"""Rows named in one message."""


class DivergedError(QwenLocalError):
    """Loss or gradient stopped being finite; the adapter was neither updated with it nor kept."""

    exit_code = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What is learned and what is held out, each row with the place that a message names."""

    train: AnyRows
    evaluation: AnyRows | None
    train_places: Sequence[str]
    eval_places: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """When a checkpoint is written beside those of the best and of the end."""

    every: Literal["auto"] | int
    save: Callable[[Standing], None]
    """Called with where the run stands. Where `best_step` is the present step the adapter is the
    best so far."""


def train_loop(
    backend: Backend,
    data: Data,
    schedule: Schedule,
    start: Standing,
    *,
    batch_size: int,
    seed: int,
    early_stopping: EarlyStopping | None,
    metrics: Metrics,
    progress: Progress,
    health: Health,
    saving: Saving,
    stops: Stops,
) -> tuple[Standing, str]:
    """Train to the end of the schedule, or until early stopping or a signal ends the run.

    Args:
        backend: an engine at `start`.
        data: rows; the order of those to learn is a function of (seed, epoch) alone, those to
            evaluate on are scored before the first step and as the schedule says.
        schedule: steps, rates, evaluations.
        start: where the run stands.
        batch_size: rows of an optimizer step; the last step of an epoch may have fewer.
        seed: of the order.
        early_stopping: the rule's numbers, None for none.
        metrics: where events go.
        progress: what the person sees.
        health: looks at losses and norms, at `start` as well.
        saving: when and how checkpoints are written. The end is always saved. Without evaluation
            rows the last adapter counts as the best.
        stops: the signals that end a run after its step.

    Returns:
        Where the run stands, and why it ended there.

    Raises:
        DivergedError: loss, gradient norm or evaluation loss is not finite.
        OutOfMemoryError: memory does not hold a single row.
        Stopped: a second signal came.
    """
    train, now, saved, saved_at = data.train, start, start, time.monotonic()
    order, order_epoch = np.zeros(0, np.int64), -1

    def save() -> None:
        nonlocal now, saved, saved_at
        now = replace(now, health=health.state())
        saving.save(now)
        saved, saved_at = now, time.monotonic()

    def warn(concerns: Sequence[Concern]) -> None:
        for concern in concerns:
            metrics.write(
                "warning",
                step=concern.step,
                kind=concern.kind,
                message=concern.message,
                **concern.numbers,
            )
            log.info("warning: %s", concern.message)

    def over() -> str | None:
        if stops.signum is not None:
            return stops.name
        if now.step >= schedule.steps:
            return ALL_STEPS
        if early_stopping is not None and stopping.exhausted(now.patience, early_stopping):
            return stopping.stopped_because(now.patience, early_stopping, now.best_step)
        return None

    def evaluate() -> None:
        nonlocal now
        assert data.evaluation is not None
        progress.evaluating()
        began = time.monotonic()
        with budget_told(backend, metrics, now.step):
            try:
                with stops.at_once():  # nothing is changed by it, and it is repeated on resuming
                    scores = score(backend, data.evaluation, data.eval_places)
            except Stopped:
                if stops.twice:
                    raise
                return
        loss, took = scores.mean, time.monotonic() - began
        metrics.write(
            "eval",
            step=now.step,
            loss=loss,
            perplexity=math.exp(min(loss, 700.0)),
            supervised_tokens=data.evaluation.supervised,
            seconds=took,
        )
        if not math.isfinite(loss):
            raise DivergedError(
                f"step {now.step}: evaluation loss {loss:g} is not finite; the adapter was not "
                f"kept\n\n{_blamed(scores.nll_R.tolist(), data.eval_places)}{CALMER}"
            )
        progress.evaluated(now.step, loss)
        warn(health.evaluated(now.step, loss))
        now = replace(
            now,
            evaluated_step=now.step,
            eval_loss=loss,
            evaluation_seconds=now.evaluation_seconds + took,
            first_eval_loss=loss if now.step == 0 else now.first_eval_loss,
        )
        if early_stopping is not None:
            patience = stopping.after(now.patience, early_stopping, schedule, now.step, loss)
            now = replace(now, patience=patience)
        if now.step and (now.best_eval_loss is None or loss < now.best_eval_loss):
            now = replace(now, best_step=now.step, best_eval_loss=loss)

    while True:
        due = schedule.evaluates_after(now.step) or (now.step == 0 and bool(schedule.eval_every))
        if due and now.evaluated_step != now.step:
            evaluate()
        because = over()
        if because is not None:
            break
        if now != saved and _save_is_due(saving.every, now, saved_at):
            save()
        epoch, place = divmod(now.step, schedule.steps_per_epoch)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(len(train), seed=seed, epoch=epoch), epoch
        chosen = order[place * batch_size : (place + 1) * batch_size]
        rows = train.take(chosen)
        step = now.step + 1
        with budget_told(backend, metrics, step), rows_named(data.train_places, chosen):
            before = backend.score(rows).mean if now.evaluated_step == now.step else None
            if now.step == start.step:
                progress.begin()
            began = time.monotonic()
            result = backend.step(rows, lr=schedule.learning_rate(now.step), tokens=rows.supervised)
            took = time.monotonic() - began
        loss = result.loss_sum / rows.supervised
        metrics.write(
            "train",
            step=step,
            epoch=step / schedule.steps_per_epoch,
            loss=loss,
            learning_rate=result.learning_rate,
            grad_norm=result.grad_norm,
            tokens=rows.tokens,
            supervised_tokens=rows.supervised,
            computed_tokens=result.positions,
            seconds=took,
            peak_memory_bytes=backend.peak_memory_bytes(),
        )
        if not result.finite:
            raise DivergedError(
                f"step {step}: loss {loss:g} and gradient norm {result.grad_norm:g} are not both "
                "finite; the adapter was not updated\n\n"
                f"{_blamed(_losses(backend, rows), [data.train_places[i] for i in chosen])}{CALMER}"
            )
        now = replace(
            now,
            step=step,
            loss_sum=now.loss_sum + result.loss_sum,
            supervised_tokens=now.supervised_tokens + rows.supervised,
            tokens=now.tokens + rows.tokens,
            seconds=now.seconds + took,
            first_loss=loss if step == 1 else now.first_loss,
            last_loss=loss,
        )
        warn(health.stepped(step, loss, result.grad_norm))
        if before is not None:
            warn(health.compared(step, loss, before))
        speed = (now.tokens - start.tokens) / (now.seconds - start.seconds)  # of this process
        progress.stepped(step, loss, result.learning_rate, speed)
    if data.evaluation is None and now.step:
        now = replace(now, best_step=now.step)
    if now != saved and now.step:
        save()
    return now, because


def score(backend: Backend, rows: AnyRows, places: Sequence[str]) -> Scores:
    """What the model thinks of all rows, of which only some are in memory at a time.

    Raises:
        OutOfMemoryError: memory does not hold a single row.
    """
    parts = []
    for start in range(0, len(rows), SCORED_AT_ONCE):
        some = range(start, min(start + SCORED_AT_ONCE, len(rows)))
        with rows_named(places, some):
            parts.append(backend.score(rows.take(some)))
    return Scores(
        nll_R=np.concatenate([part.nll_R for part in parts]),
        tokens_R=np.concatenate([part.tokens_R for part in parts]),
    )


@contextmanager
def rows_named(places: Sequence[str], rows: Sequence[int] | np.ndarray) -> Iterator[None]:
    """Says where the row stands that memory does not hold.

    Args:
        places: of all rows.
        rows: the indices of those that the engine is given within the `with`.

    Raises:
        OutOfMemoryError: memory does not hold a single row.
    """
    try:
        yield
    except RowTooLargeError as error:
        place = places[rows[error.row]]
        raise OutOfMemoryError(
            f"out of memory: {place} alone does not fit, a row of {error.length:,} tokens"
            f"\n\n{SMALLER}"
        ) from None


@contextmanager
def budget_told(backend: Backend, metrics: Metrics, step: int) -> Iterator[None]:
    """Notes that memory ran out, where the engine went on with smaller micro-batches."""
    before = backend.micro_batch_tokens
    yield
    if backend.micro_batch_tokens != before:
        metrics.write("memory", step=step, micro_batch_tokens=backend.micro_batch_tokens)
        log.info(
            "out of memory at step %d: from now on %s tokens are computed at once; the step was "
            "begun again, and its update is the same",
            step,
            f"{backend.micro_batch_tokens:,}",
        )


def _save_is_due(every: Literal["auto"] | int, now: Standing, saved_at: float) -> bool:
    if now.best_step == now.step:
        return now.step > 0
    if every == "auto":
        return time.monotonic() - saved_at >= SAVE_SECONDS
    return now.step % every == 0


def _losses(backend: Backend, rows: Rows) -> list[float]:
    """The loss of each row; none that is not finite where memory does not hold them."""
    try:
        losses: list[float] = backend.score(rows).nll_R.tolist()
    except RowTooLargeError:
        return [0.0] * len(rows)
    return losses


def _blamed(losses: Sequence[float], places: Sequence[str]) -> str:
    """Which rows are to blame, by their losses without dropout."""
    bad = [place for place, loss in zip(places, losses, strict=True) if not math.isfinite(loss)]
    said = "rows whose own loss is not finite:"
    if not bad:
        bad, said = (
            list(places),
            "no row has a loss that is not finite by itself; the rows of the step are",
        )
    more = f" and {len(bad) - ROWS_NAMED:,} more" if len(bad) > ROWS_NAMED else ""
    return f"{said} {', '.join(bad[:ROWS_NAMED])}{more}\n\n"
