"""A run that may start: its plan, and the checkpoint that it continues from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qwen_local.backends.machine import Machine
from qwen_local.job.schema import Draft
from qwen_local.models.fingerprint import fingerprint
from qwen_local.runs.events import EndEvent, ResumeEvent, StartEvent
from qwen_local.runs.names import RunFiles
from qwen_local.runs.run import Run
from qwen_local.runs.state import Identity, TrainState
from qwen_local.training import stopping
from qwen_local.training.advice import free_memory_warning, quantization_advice
from qwen_local.training.child import Child, this_child
from qwen_local.training.plan import (
    Plan,
    cap_budget,
    graphs_line,
    identity_of,
    keep_budget,
    plan_run,
    run_request,
)
from qwen_local.training.resume import Restored, ResumePoint, check_same

log = logging.getLogger("qwen_local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """A run to continue, and where."""

    point: ResumePoint
    restored: Restored | None
    """None if the run ended before its first checkpoint: it starts again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyRun:
    """Everything that is known before the first step."""

    plan: Plan
    identity: Identity
    state: TrainState
    """State to continue from; a new run's is empty."""
    resumed: Resumed | None
    changed: Mapping[str, tuple[Any, Any]]
    """Changes since the checkpoint: (before, now) by key."""
    child: Child | None
    """Set under `train.restarts`."""

    @property
    def restored(self) -> Restored | None:
        """The checkpoint to continue from."""
        return None if self.resumed is None else self.resumed.restored

    @property
    def files(self) -> RunFiles:
        """Paths of the run directory."""
        return RunFiles(self.plan.output)

    @property
    def result(self) -> EndEvent | None:
        """Result of a resumed run that has nothing left to do, None if there are steps left."""
        if self.restored is None:
            return None
        state, rule = self.state, self.plan.job.train.early_stopping
        done = state.step >= self.plan.schedule.steps or (
            rule is not None and stopping.exhausted(state.patience, rule)
        )
        run = Run(self.plan.output)
        if not done or run.best_adapter != run.files.peft:
            return None
        last = run.finished
        if last is None or last.steps != state.step:
            return None
        return replace(last, run=str(self.plan.output), adapter=str(run.files.adapter))


def ready_run(
    draft: Draft,
    machine: Machine,
    *,
    backend: str,
    device: str,
    resumed: Resumed | None,
    quiet: bool,
) -> ReadyRun:
    """Plan a run and check that it may start; the run directory stays as it is.

    Args:
        draft: the job.
        machine: the present one.
        backend: `auto`, `mlx` or `cuda`.
        device: `auto`, `gpu` or `cpu`.
        resumed: the run that continues, None for a new one.
        quiet: show no progress.

    Raises:
        InputError: something cannot be used, or makes it another run.
    """
    before = None
    if resumed is not None and resumed.restored is not None:
        before = resumed.restored.checkpoint
    request = run_request(draft, backend=backend, device=device, before=before)
    folder = None if resumed is None else resumed.point.folder
    plan = plan_run(request, machine, execute=True, folder=folder, quiet=quiet).with_weights()
    identity = identity_of(plan, fingerprint(plan.resolved.model.folder))
    changed: Mapping[str, tuple[Any, Any]] = {}
    if before is not None:
        changed = check_same(draft, before.identity, identity)
        plan = keep_budget(plan, before.execution, set(changed))
    child = this_child()
    plan = cap_budget(plan, None if child is None else child.micro_batch_tokens)
    _report_choices(plan)
    return ReadyRun(
        plan=plan,
        identity=identity,
        state=TrainState() if before is None else before.state,
        resumed=resumed,
        changed=changed,
        child=child,
    )


def _report_choices(plan: Plan) -> None:
    resolved, choice = plan.resolved, plan.resolved.choice
    log.info("model: %s", resolved.source.name)
    log.info("backend: %s on the %s (%s)", choice.backend, choice.device, choice.reason)
    log.info("dtype: %s (%s)", resolved.dtype, resolved.dtype_reason)
    log.info("memory: %s", plan.memory_reason)
    if (line := graphs_line(plan)) is not None:
        log.info("memory: %s", line)
    free = plan.resolved.machine.gpu_free_bytes
    if (warning := free_memory_warning(plan.memory, free)) is not None:
        log.warning("memory: %s", warning)
    if (advice := quantization_advice(plan.setup, plan.workload)) is not None:
        log.info("advice: %s", advice)


def start_event(ready: ReadyRun) -> StartEvent | ResumeEvent:
    """Make the first event of this process."""
    plan, prepared, child = ready.plan, ready.plan.prepared, ready.child
    about: dict[str, Any] = {
        "died_of": None if child is None else child.died_of,
        "backend": plan.resolved.choice.backend,
        "device": plan.resolved.choice.device,
        "dtype": plan.resolved.dtype,
        "micro_batch_tokens": plan.setup.micro_batch_tokens,
        "steps": plan.schedule.steps,
        "trainable_parameters": plan.trainable,
        "total_parameters": ready.plan.total_parameters,
        "vocabulary": plan.resolved.architecture.vocabulary,
        "tokenizer_sha256": plan.resolved.known_tokenizer.sha256,
        "template_sha256": prepared.report.template_sha256,
        "eval_rows": 0 if prepared.eval is None else len(prepared.eval),
        "eval_rows_sha256": ready.identity.eval_rows,
    }
    if ready.restored is None:
        return StartEvent(rows=len(prepared.train), **about)
    return ResumeEvent(
        step=ready.state.step, changed=ready.changed, lost=ready.restored.lost, **about
    )


def end_event(ready: ReadyRun, state: TrainState, reason: str, peak_memory_bytes: int) -> EndEvent:
    """Make the last event: the run's result.

    Args:
        ready: the run.
        state: after its last step.
        reason: for its end.
        peak_memory_bytes: measured.
    """
    plan, child = ready.plan, ready.child
    return EndEvent(
        run=str(plan.output),
        adapter=str(ready.files.adapter),
        backend=plan.resolved.choice.backend,
        device=plan.resolved.choice.device,
        steps=state.step,
        epochs=state.step / plan.schedule.steps_per_epoch,
        train_loss=state.loss_sum / max(1, state.supervised_tokens),
        first_eval_loss=state.first_eval_loss,
        eval_loss=state.eval_loss,
        best_step=state.best_step,
        best_eval_loss=state.best_eval_loss,
        trainable_parameters=plan.trainable,
        total_parameters=ready.plan.total_parameters,
        supervised_tokens=state.supervised_tokens,
        tokens_per_second=state.tokens / state.seconds if state.seconds else 0.0,
        peak_memory_bytes=peak_memory_bytes,
        stopped_because=reason,
        restarts=0 if child is None else child.restarts,
    )
