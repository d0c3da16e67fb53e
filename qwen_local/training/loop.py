"""The loop: one flat pass from the first step to the last, the same for every engine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from qwen_local.backends.base import Arrays, Backend
from qwen_local.datasets.plan import epoch_order
from qwen_local.errors import QwenLocalError
from qwen_local.rows import Rows
from qwen_local.training.metrics import Metrics
from qwen_local.training.progress import Progress
from qwen_local.training.schedule import Schedule

CALMER = "hint: lower train.learning_rate, or train in float32 (model.dtype)"


class DivergedError(QwenLocalError):
    """Loss or gradient stopped being finite; the adapter was neither updated with it nor kept."""

    exit_code = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the loop came to."""

    steps: int
    train_loss: float
    """Mean over every supervised token that was trained."""
    first_loss: float
    """Mean loss over the supervised tokens of the first step, before any update."""
    last_loss: float
    """The same of the last step."""
    best_step: int
    """Of the adapter that was kept. Without an eval set the last; step 0 is never the best."""
    first_eval_loss: float | None
    """Before the first step; None without an eval set, as are the next two."""
    best_eval_loss: float | None
    eval_loss: float | None
    """Of the last evaluation."""
    supervised_tokens: int
    seconds: float
    """Of the optimizer steps, without evaluation."""
    tokens: int
    """Input positions of all steps, padding not counted."""


def train_loop(
    backend: Backend,
    train: Rows,
    evaluation: Rows | None,
    schedule: Schedule,
    *,
    batch_size: int,
    seed: int,
    metrics: Metrics,
    progress: Progress,
    keep: Callable[[int, Arrays], None],
) -> Outcome:
    """Train to the end of the schedule.

    Args:
        backend: an engine, its adapter at the starting point.
        train: rows to learn; their order is a function of (seed, epoch) alone.
        evaluation: fixed rows, scored before the first step and as the schedule says.
        schedule: steps, rates, evaluations.
        batch_size: rows of an optimizer step; the last step of an epoch may have fewer.
        seed: of the order.
        metrics: where events go.
        progress: what the person sees.
        keep: called with (step, adapter) whenever the adapter is the best so far, and at the end
            where there is no evaluation set.

    Raises:
        DivergedError: loss, gradient norm or evaluation loss is not finite.
    """
    best_step, best_loss = 0, math.inf
    first_eval_loss = eval_loss = None
    first_loss = last_loss = loss_sum = seconds = 0.0
    tokens = supervised = 0

    def evaluate(step: int) -> float:
        assert evaluation is not None
        progress.evaluating()
        began = time.monotonic()
        loss = backend.score(evaluation).mean
        metrics.write(
            "eval",
            step=step,
            loss=loss,
            perplexity=math.exp(min(loss, 700.0)),
            supervised_tokens=evaluation.supervised,
            seconds=time.monotonic() - began,
        )
        if not math.isfinite(loss):
            raise DivergedError(
                f"step {step}: evaluation loss {loss:g} is not finite; the adapter was not kept\n\n"
                f"{CALMER}"
            )
        progress.evaluated(step, loss)
        return loss

    if evaluation is not None:
        first_eval_loss = eval_loss = evaluate(0)
    for k in range(schedule.steps):
        epoch, place = divmod(k, schedule.steps_per_epoch)
        if place == 0:
            order = epoch_order(len(train), seed=seed, epoch=epoch)
        rows = train.take(order[place * batch_size : (place + 1) * batch_size])
        began = time.monotonic()
        result = backend.step(rows, lr=schedule.learning_rate(k), tokens=rows.supervised)
        took = time.monotonic() - began
        loss = result.loss_sum / rows.supervised
        seconds, tokens = seconds + took, tokens + rows.tokens
        supervised += rows.supervised
        loss_sum += result.loss_sum
        first_loss, last_loss = (loss if k == 0 else first_loss), loss
        metrics.write(
            "train",
            step=k + 1,
            epoch=(k + 1) / schedule.steps_per_epoch,
            loss=loss,
            learning_rate=result.learning_rate,
            grad_norm=result.grad_norm,
            tokens=rows.tokens,
            supervised_tokens=rows.supervised,
            seconds=took,
            peak_memory_bytes=backend.peak_memory_bytes(),
        )
        if not result.finite:
            raise DivergedError(
                f"step {k + 1}: loss {loss:g} and gradient norm {result.grad_norm:g} are not both "
                f"finite; the adapter was not updated\n\n{CALMER}"
            )
        progress.stepped(k + 1, loss, result.learning_rate, tokens / seconds)
        if schedule.evaluates_after(k + 1):
            eval_loss = evaluate(k + 1)
            if eval_loss < best_loss:
                best_step, best_loss = k + 1, eval_loss
                keep(best_step, backend.adapter())
    if evaluation is None:
        best_step = schedule.steps
        keep(best_step, backend.adapter())
    return Outcome(
        steps=schedule.steps,
        train_loss=loss_sum / supervised,
        first_loss=first_loss,
        last_loss=last_loss,
        best_step=best_step,
        first_eval_loss=first_eval_loss,
        best_eval_loss=None if evaluation is None else best_loss,
        eval_loss=eval_loss,
        supervised_tokens=supervised,
        seconds=seconds,
        tokens=tokens,
    )
