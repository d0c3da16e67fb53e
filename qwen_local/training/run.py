"""From a job to a saved adapter: check everything, make the run directory, train."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from qwen_local.backends.base import Backend
from qwen_local.backends.probe import probe
from qwen_local.backends.select import choose
from qwen_local.cards.facts import card_facts, write_card
from qwen_local.console.log import LogFile, logging_to, talk
from qwen_local.console.signals import Stopped, Stops
from qwen_local.errors import DiskFullError, OutOfMemoryError, QwenLocalError
from qwen_local.files import json_bytes, replace_file, room_for
from qwen_local.job.schema import Draft
from qwen_local.resolve.open import open_model
from qwen_local.runs.directory import claim_folder, make_folder
from qwen_local.runs.environment import environment
from qwen_local.runs.events import EndEvent, FailedEvent, ForecastEvent, cut_events
from qwen_local.runs.lock import locked
from qwen_local.training import messages
from qwen_local.training.awake import keep_awake
from qwen_local.training.disk import SMALL_FILES
from qwen_local.training.forecast import Forecast, forecast
from qwen_local.training.loop import Data, train_loop
from qwen_local.training.ready import ReadyRun, Resumed, end_event, ready_run, start_event
from qwen_local.training.recorder import Recorder
from qwen_local.training.recording import make_recorder
from qwen_local.training.resume import discard_later, find_run, load_checkpoint
from qwen_local.training.warm_up import warm_up

log = logging.getLogger("qwen_local")


def train(
    draft: Draft, *, backend: str, device: str, quiet: bool = False, resume: str | None = None
) -> EndEvent:
    """Run a job, or continue its run.

    Args:
        draft: the job.
        backend: `auto`, `mlx` or `cuda`.
        device: `auto`, `gpu` or `cpu`.
        quiet: print nothing on stderr.
        resume: None for a new run; see `resume.find_run` for the other values.

    Raises:
        InputError: something in job, data, model or machine cannot be used; the run directory is
            as it was.
        RunBusyError: another process has the run directory.
        CheckpointError: there is no good checkpoint to continue from.
        DivergedError: loss or gradient is not finite.
        OutOfMemoryError: memory does not hold a single row.
        DiskFullError: the disk is full.
        Stopped: a signal ended the run, after a checkpoint if it was the first signal.
    """
    early = MemoryHandler(capacity=1000)
    with talk(quiet=quiet), ExitStack() as stack, ExitStack() as until_there_is_a_log:
        until_there_is_a_log.enter_context(logging_to(early))
        machine = probe()
        resumed = None
        if resume is not None:
            choose(machine, backend, device)  # fails before the run is touched
            point = find_run(draft, resume)
            log.info("run: %s", point.folder)
            stack.enter_context(locked(point.folder))
            resumed = Resumed(point=point, restored=load_checkpoint(point))
        ready = ready_run(
            draft, machine, backend=backend, device=device, resumed=resumed, quiet=quiet
        )
        if (done := ready.result) is not None:
            messages.report_finished(ready, done)
            return done
        engine = open_model(ready.plan.resolved, ready.plan.setup)
        with room_for(ready.files.job, SMALL_FILES):
            _take_folder(ready, engine, stack)
            until_there_is_a_log.close()
            stack.enter_context(_log_file(ready.files.log, early.buffer))
        stack.enter_context(keep_awake(machine.system))
        return _train(ready, engine, quiet=quiet)


def _take_folder(ready: ReadyRun, backend: Backend, stack: ExitStack) -> None:
    """Make the run directory and lock it, or bring a resumed one to its checkpoint; describe it."""
    plan, files = ready.plan, ready.files
    if ready.resumed is None:
        make_folder(plan.output)
        stack.enter_context(locked(plan.output))
        claim_folder(plan.output, plan.job)
    else:
        if ready.restored is not None:
            backend.load_state(ready.restored.checkpoint.adapter_state)
            discard_later(ready.resumed.point, ready.restored)
        replace_file(files.job, plan.job.to_yaml().encode())
    resolved = plan.resolved
    about = environment(resolved.machine, resolved.choice, plan.setup, resolved.model.commit)
    replace_file(files.environment, json_bytes(about))
    replace_file(files.data, json_bytes(plan.prepared.report.to_json()))


def _train(ready: ReadyRun, backend: Backend, *, quiet: bool) -> EndEvent:
    """Train into the run directory."""
    plan, state = ready.plan, ready.state
    messages.report_start(ready)
    data = Data(
        train=plan.prepared.train,
        evaluation=plan.prepared.eval,
        train_places=plan.prepared.train_places,
        eval_places=plan.prepared.eval_places,
    )
    _cut_events(ready)
    recorder = make_recorder(ready, backend, quiet=quiet)
    with recorder, Stops(quiet=quiet) as stops:
        try:
            recorder.write(start_event(ready))
            recorder.checkpoints.restore_adapter(state)
            coming = _warm_up(ready, backend, data, recorder)
            now, reason = train_loop(
                backend,
                data,
                plan.schedule,
                state,
                spec=plan.job.train,
                recorder=recorder,
                stops=stops,
            )
        except (QwenLocalError, OSError, Stopped) as error:
            with suppress(OSError, QwenLocalError):
                recorder.write(FailedEvent(error=str(error).partition("\n")[0]))
            resumable = isinstance(error, OSError | DiskFullError | OutOfMemoryError | Stopped)
            messages.report_failure(ready, can_continue=resumable)
            raise
        peak = backend.peak_memory_bytes()
        result = end_event(ready, now, reason, peak)
        signum = stops.signum if reason == stops.name else None
        if signum is None:
            _write_card(ready)  # before the end, after which a resumed run has nothing left to do
        recorder.write(result)
        if signum is not None:
            messages.report_stopped(ready, now, reason)
            raise Stopped(signum)
    if coming is not None and now.step > state.step:
        messages.report_forecast_error(ready, coming, now, peak)
        messages.report_padding(ready)
    messages.report_outcome(state, now, reason, plan.output)
    return result


def _cut_events(ready: ReadyRun) -> None:
    """Remove the events that a resumed run writes again."""
    path, state = ready.files.metrics, ready.state
    trained = 0
    if path.exists():
        until = -1 if ready.restored is None else state.step
        trained = cut_events(path, until, state.evaluated_step)
    if trained < state.step:
        lost = f"{trained + 1} to {state.step}"
        log.info("warning: %s is damaged: events of steps %s are lost", path, lost)


def _warm_up(ready: ReadyRun, backend: Backend, data: Data, recorder: Recorder) -> Forecast | None:
    """Compute the largest micro-batches, and report the estimated time; None at the last step."""
    plan, done = ready.plan, ready.state.step
    if done >= plan.schedule.steps:
        return None
    spec = plan.job.train
    tried = warm_up(
        backend,
        data,
        recorder,
        done,
        batch_size=spec.batch_size,
        records=plan.setup.cuda_graphs,
    )
    coming = forecast(
        plan.schedule,
        data,
        spec,
        budget=backend.micro_batch_tokens,
        layout=backend.layout,
        warm_up=tried,
        done=done,
    )
    recorder.write(
        ForecastEvent(
            step=done,
            training_seconds=coming.training_seconds,
            evaluation_seconds=coming.evaluation_seconds,
            memory_bytes=plan.memory.peak,
            peak_memory_bytes=tried.peak_memory_bytes,
        )
    )
    messages.report_forecast(ready, coming, tried.peak_memory_bytes)
    return coming


def _write_card(ready: ReadyRun) -> None:
    """Write the model card beside the adapter. No run fails because of its description."""
    folder = ready.files.adapter
    if not folder.exists():
        return
    try:
        write_card(folder, card_facts(ready.plan.output, "adapter", base=ready.plan.resolved.model))
    except Exception as error:  # whatever it is: the adapter is there, and complete
        log.info("warning: %s has no model card: %s", folder, error)


def _log_file(path: Path, before: list[logging.LogRecord]) -> AbstractContextManager[None]:
    """Copy messages to run.log with their times, earlier ones first."""
    handler = LogFile(path)
    for record in before:
        handler.handle(record)
    return logging_to(handler)
