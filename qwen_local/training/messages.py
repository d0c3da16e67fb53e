"""Log lines of a run before its first step and after its last one."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

from qwen_local.runs.events import EndEvent, TrainEvent, read_events
from qwen_local.runs.names import RunFiles
from qwen_local.runs.run import Run
from qwen_local.runs.state import TrainState
from qwen_local.training.forecast import Forecast, describe, describe_error, duration
from qwen_local.training.loop import ALL_STEPS
from qwen_local.training.ready import ReadyRun
from qwen_local.training.resume import as_yaml, resume_command

log = logging.getLogger("qwen_local")


def report_start(ready: ReadyRun) -> None:
    """Log what will be trained, and where a resumed run continues."""
    plan = ready.plan
    schedule, train = plan.schedule, plan.prepared.train
    parameters = plan.trainable, plan.total_parameters
    log.info("trainable: %s of %s parameters", *map(_grouped, parameters))
    log.info("data: %s", plan.data.description)
    log.info(
        "steps: %s, warm-up %s%s; %s of %s tokens supervised",
        _grouped(schedule.steps),
        _grouped(schedule.warmup),
        f", an evaluation every {schedule.eval_every:,}" if schedule.evaluations else "",
        _grouped(train.supervised),
        _grouped(train.tokens),
    )
    if ready.restored is None:
        return
    log.info("resumed: after step %s of %s", _grouped(ready.state.step), _grouped(schedule.steps))
    for key, (was, now) in ready.changed.items():
        log.info("changed: %s was %s, is %s", key, as_yaml(was), as_yaml(now))
    if {"train.epochs", "train.steps"} & ready.changed.keys():
        log.info("the learning rate follows the new number of steps from here on")
    before = ready.restored.checkpoint.execution
    engine, dtype = ready.plan.resolved.choice.backend, ready.plan.resolved.dtype
    if (before.backend, before.dtype) != (engine, dtype):
        log.info(
            "previously %s in %s, now %s in %s: the curve agrees up to rounding",
            before.backend,
            before.dtype,
            engine,
            dtype,
        )


def report_forecast(ready: ReadyRun, coming: Forecast, peak_memory_bytes: int) -> None:
    """Log the estimated time, and planned memory beside the warm-up's."""
    log.info(
        "time: %s; memory: %.2f GB planned, %.2f after a warm-up with the largest micro-batches",
        describe(coming),
        ready.plan.memory.peak / 1e9,
        peak_memory_bytes / 1e9,
    )


def report_finished(ready: ReadyRun, result: EndEvent) -> None:
    """Log that a resumed run has nothing left to do, and what can be done with it."""
    output = ready.plan.output
    message = "%s is finished already, after %d steps: %s"
    log.info(message, output, result.steps, result.stopped_because)
    log.info("to train it further, raise train.epochs or train.steps")
    _report_next(output)


def report_stopped(ready: ReadyRun, state: TrainState, reason: str) -> None:
    """Log where a signal stopped the run, and how to continue."""
    run = Run(ready.plan.output)
    log.info("stopped by %s after step %s of %s", reason, state.step, ready.plan.schedule.steps)
    if state.step and not run.files.adapter.exists():
        log.info("no best adapter yet; the last checkpoint is %s", run.checkpoint(state.step))
    log.info("to continue: %s", resume_command(ready.plan.output))


def report_failure(ready: ReadyRun, *, can_continue: bool) -> None:
    """Log the last checkpoint of a run that an error ended."""
    if steps := Run(ready.plan.output).checkpoints:
        log.info("the last checkpoint is at step %d", steps[0])
        if can_continue:
            log.info("to continue: %s", resume_command(ready.plan.output))


def report_forecast_error(
    ready: ReadyRun, coming: Forecast, state: TrainState, peak_memory_bytes: int
) -> None:
    """Log the estimates beside what the steps of this process took."""
    start = ready.state
    done = replace(coming, steps=state.step - start.step)
    if state.step < ready.plan.schedule.steps and coming.evaluations:  # it stopped early
        share = (state.step - start.step) / coming.steps
        done = replace(done, evaluations=round(coming.evaluations * share))
    message = describe_error(
        done,
        seconds=_seconds(state) - _seconds(start),
        planned_bytes=ready.plan.memory.peak,
        peak_bytes=peak_memory_bytes,
    )
    log.info("%s", message)


def report_padding(ready: ReadyRun) -> None:
    """Log the share of padding in what was computed, and of supervised tokens in the rest."""
    tokens, supervised, computed = 0, 0, 0
    for event in read_events(ready.files.metrics, TrainEvent):
        tokens += event.tokens or 0
        supervised += event.supervised_tokens or 0
        computed += event.computed_tokens or 0
    if not tokens:  # every line of the steps is damaged
        return
    padding = f"; padding: {1 - tokens / computed:.1%} of the positions computed"
    log.info(
        "supervised: %.0f %% of the tokens%s",
        100 * supervised / tokens,
        padding if computed > tokens else "",
    )


def report_outcome(start: TrainState, state: TrainState, reason: str, output: Path) -> None:
    """Log the result, and the command to try it.

    Args:
        start: of this process.
        state: at the end.
        reason: for the end.
        output: the run directory.
    """
    files = RunFiles(output)
    took = duration(_seconds(state))
    if start.step:
        took += f", {duration(_seconds(state) - _seconds(start))} of them now"
    evaluated = ""
    if state.best_eval_loss is not None and state.first_eval_loss is not None:
        evaluated = (
            f"; eval loss {state.first_eval_loss:.4f} -> {state.best_eval_loss:.4f}, "
            f"best at step {state.best_step}"
        )
        if state.best_eval_loss >= state.first_eval_loss:
            evaluated += ", which is no better than before training"
    if reason != ALL_STEPS:
        log.info("%s", reason)
    log.info(
        "done in %s: first-step loss %.4f, last-step loss %.4f%s",
        took,
        state.first_loss,
        state.last_loss,
        evaluated,
    )
    log.info("adapter: %s (PEFT), %s (mlx-lm)", files.peft, files.mlx)
    _report_next(output)


def _report_next(output: Path) -> None:
    log.info("next: qwen-local chat --adapter %s", shlex.quote(str(output)))


def _grouped(number: int) -> str:
    return f"{number:,}"


def _seconds(state: TrainState) -> float:
    """Time of training and evaluation up to a state."""
    return state.seconds + state.evaluation_seconds
