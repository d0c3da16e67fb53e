"""The plan of a run, worked out without loading a weight: `plan` prints it, `train` executes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_local.backends.base import Setup
from qwen_local.backends.cost import cost_of, estimate_memory
from qwen_local.backends.machine import Machine
from qwen_local.backends.memory import Memory, Workload
from qwen_local.backends.probe import probe
from qwen_local.datasets.count import count_rows
from qwen_local.datasets.prepare import Prepared
from qwen_local.errors import DiskFullError, JobError, QwenLocalError, RunBusyError
from qwen_local.files import free_bytes
from qwen_local.job.schema import Draft, Job
from qwen_local.resolve.request import Request
from qwen_local.resolve.resolve import Resolved, resolve, with_weights
from qwen_local.runs.directory import check_free, run_folder
from qwen_local.runs.lock import check_not_busy
from qwen_local.runs.state import Checkpoint, Execution, Identity
from qwen_local.training.disk import disk_need
from qwen_local.training.job_data import (
    check_data_given,
    data_sources,
    prepare_data,
    with_data_faults,
)
from qwen_local.training.named_machines import named_machine
from qwen_local.training.preparation import (
    PlannedData,
    check_length,
    check_report_to,
    make_setup,
    make_workload,
    trainable_parameters,
)
from qwen_local.training.resume import ResumePoint, changes, check_same, peek_checkpoint
from qwen_local.training.schedule import Schedule, make_schedule

MORE_ROOM = "make room, set output to a folder elsewhere, or lower train.keep"
"""Hint for a disk that is too small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusals:
    """Errors that `train` raises and that leave the figures of a plan as they are."""

    output: JobError | RunBusyError | None = None
    """The run directory is taken."""
    data: JobError | None = None
    """The job has no data; the plan is for the sample data."""
    disk: DiskFullError | None = None

    def __iter__(self) -> Iterator[QwenLocalError]:
        """Every error that there is."""
        return (error for error in (self.output, self.data, self.disk) if error is not None)

    def check(self) -> None:
        """Raise the refusals, the faults of several job errors as one error.

        Raises:
            QwenLocalError: at least one refusal.
        """
        jobs = [error for error in self if isinstance(error, JobError)]
        for error in self:
            if not isinstance(error, JobError):
                raise error
        if jobs:
            raise JobError([fault for error in jobs for fault in error.faults])


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that a run will do, with every choice made."""

    job: Job
    """Complete, with its output folder."""
    resolved: Resolved
    data: PlannedData
    trainable: int
    """Adapter parameters."""
    schedule: Schedule
    setup: Setup
    """Of the engine, its memory budget included."""
    memory_reason: str
    """The reason for micro-batch budget and checkpointing."""
    workload: Workload
    memory: Memory
    """The estimated need."""
    output: Path
    disk_bytes: int
    """Largest size of the run directory."""
    disk_free_bytes: int | None
    """Free bytes where the run directory is or will be; None on another machine."""
    refusals: Refusals = Refusals()

    @property
    def total_parameters(self) -> int:
        """Parameters of base model and adapter."""
        return self.resolved.architecture.parameters() + self.trainable

    @property
    def prepared(self) -> Prepared:
        """The rows of a plan that is executed, which always has a tokenizer."""
        assert self.data.prepared is not None
        return self.data.prepared

    def with_weights(self) -> Plan:
        """The same plan with the base model's weights on this machine."""
        resolved = with_weights(self.resolved)
        setup = replace(self.setup, model=resolved.model)
        return replace(self, resolved=resolved, setup=setup)

    def with_setup(self, setup: Setup, reason: str) -> Plan:
        """The same plan with another memory budget.

        Args:
            setup: differs in micro-batch budget or checkpointing.
            reason: in words.
        """
        if setup == self.setup:
            return self
        memory = estimate_memory(setup, self.workload)
        return replace(self, setup=setup, memory_reason=reason, memory=memory)


def plan_job(
    draft: Draft,
    *,
    backend: str,
    device: str,
    elsewhere: str | None = None,
    resume: ResumePoint | None = None,
) -> Plan:
    """Plan a run that may never be executed, or only on another machine.

    Args:
        draft: the job.
        backend: `auto`, `mlx` or `cuda`.
        device: `auto`, `gpu` or `cpu`.
        elsewhere: the name of another machine, or None for this one.
        resume: the run that would continue; its checkpoint gives engine, commit and budget.

    Raises:
        InputError: whatever `train` raises for this job before it loads a weight, but for
            `Plan.refusals`.
        RunBusyError: another process works on the run to resume.
        CheckpointError: its checkpoint is damaged.
    """
    if elsewhere is None:
        machine = probe()
    else:
        machine = named_machine(elsewhere, backend=backend, device=device)
    before = None
    if resume is not None:
        check_not_busy(resume.folder)
        before = peek_checkpoint(resume)
    request = run_request(draft, backend=backend, device=device, before=before)
    folder = None if resume is None else resume.folder
    plan = plan_run(request, machine, execute=False, folder=folder, quiet=False)
    if before is None:
        return plan
    if plan.data.prepared is None:
        changed = changes(before.identity.job, plan.job.model_dump(mode="json"))
    else:  # the base model may be absent, so its fingerprint is left to `train`
        changed = check_same(draft, before.identity, identity_of(plan, before.identity.base))
    return keep_budget(plan, before.execution, set(changed))


def run_request(draft: Draft, *, backend: str, device: str, before: Checkpoint | None) -> Request:
    """Return the request of a run: a resumed one keeps its commit, and its engine if it can.

    Args:
        draft: the job.
        backend: `auto`, `mlx` or `cuda`.
        device: `auto`, `gpu` or `cpu`.
        before: the checkpoint that the run continues from; None for a new run.
    """
    same = before is not None and before.identity.job["model"]["name"] == draft.job.model.name
    return Request.of_job(
        draft,
        backend=backend,
        device=device,
        commit=before.identity.base_commit if before is not None and same else None,
        preferred=None if before is None else before.execution.backend,
    )


def plan_run(
    request: Request, machine: Machine, *, execute: bool, folder: Path | None = None, quiet: bool
) -> Plan:
    """Resolve a job, read its data, and plan its run.

    Args:
        request: of a job.
        machine: where the run is to be.
        execute: True if the run follows. What is missing is then downloaded, and refusals are
            raised as soon as they are known. False asks no network for the model.
        folder: the directory of the run that continues; None for a new run.
        quiet: show no progress.

    Raises:
        InputError: something in job, data, model or machine cannot be used; nothing was written.
    """
    draft = request.draft
    assert draft is not None
    with with_data_faults(draft):
        resolved = resolve(request, machine, download=execute)
        resolved = with_weights(resolved, download=False)
    job = resolved.job
    assert job is not None
    output = run_folder(job) if folder is None else folder
    job = job.model_copy(update={"output": str(output)})
    refusals = _refusals(draft, job, None if folder or not machine.here else output)
    if execute:
        refusals.check()
    check_length(job, resolved.architecture)
    check_report_to(job)
    trainable = trainable_parameters(job, resolved.architecture)
    data = read_data(job, resolved, quiet=quiet)
    plan = make_plan(job, resolved, data, trainable=trainable, output=output)
    if folder is None and plan.disk_free_bytes is not None:
        if plan.disk_free_bytes < plan.disk_bytes:
            error = DiskFullError(output, plan.disk_bytes, plan.disk_free_bytes, MORE_ROOM)
            refusals = replace(refusals, disk=error)
        if execute:
            refusals.check()
    return replace(plan, refusals=refusals)


def read_data(job: Job, resolved: Resolved, *, quiet: bool) -> PlannedData:
    """Make the rows of a job, or count them where there is no tokenizer.

    Raises:
        DatasetError: every fault of all sources.
    """
    if resolved.tokenizer is None:
        train, evaluation = data_sources(job)
        counted = count_rows(
            train=train,
            eval=evaluation,
            eval_fraction=job.data.eval_fraction,
            seed=job.train.seed,
        )
        names = ", ".join(source.name for source in train)
        return PlannedData(
            rows=counted.train,
            eval_rows=counted.eval,
            prepared=None,
            description=f"{names}: {counted.train:,} rows to train on, {counted.eval:,} to "
            "evaluate on",
        )
    prepared = prepare_data(job, resolved.tokenizer, quiet=quiet)
    return PlannedData(
        rows=len(prepared.train),
        eval_rows=0 if prepared.eval is None else len(prepared.eval),
        prepared=prepared,
        description=prepared.report.describe(),
    )


def make_plan(
    job: Job, resolved: Resolved, data: PlannedData, *, trainable: int, output: Path
) -> Plan:
    """Plan the run of a job on data that was read: steps, memory, disk.

    Args:
        job: complete.
        resolved: its model, engine and device.
        data: its rows.
        trainable: adapter parameters.
        output: the run directory.
    """
    schedule = make_schedule(job.train, rows=data.rows, eval_rows=data.eval_rows)
    workload = make_workload(job, resolved, data, trainable=trainable)
    fitted = make_setup(job, resolved, workload)
    return Plan(
        job=job,
        resolved=resolved,
        data=data,
        trainable=trainable,
        schedule=schedule,
        setup=fitted.setup,
        memory_reason=fitted.reason,
        workload=workload,
        memory=estimate_memory(fitted.setup, workload),
        output=output,
        disk_bytes=disk_need(
            trainable,
            keep=job.train.keep,
            steps=schedule.steps,
            eval_rows=schedule.eval_rows,
            evaluations=schedule.evaluations,
        ),
        disk_free_bytes=free_bytes(output) if resolved.machine.here else None,
    )


def keep_budget(plan: Plan, before: Execution, changed: set[str]) -> Plan:
    """Return the plan with the memory budget of the run's previous process, on the same device.

    What the user has changed since stays changed. A budget that was halved once would run out of
    memory again.

    Args:
        plan: of the resumed run.
        before: engine and budget of the previous process.
        changed: job keys that were changed since.
    """
    same = (plan.resolved.choice.backend, plan.resolved.choice.device, plan.memory.available)
    if (before.backend, before.device, before.available) != same:
        return plan
    setup = plan.setup
    if "train.micro_batch_tokens" not in changed:
        setup = replace(setup, micro_batch_tokens=before.micro_batch_tokens)
    if "train.gradient_checkpointing" not in changed:
        setup = replace(setup, gradient_checkpointing=before.gradient_checkpointing)
    if "train.cuda_graphs" not in changed:
        setup = replace(setup, cuda_graphs=before.cuda_graphs)
    if not cost_of(plan.workload.engine).can_record(setup, plan.resolved.machine.gpu_capability):
        setup = replace(setup, cuda_graphs=False)
    return plan.with_setup(setup, _budget_reason(setup))


def cap_budget(plan: Plan, tokens: int | None) -> Plan:
    """Return the plan with at most this many tokens in a micro-batch; None leaves it as it is."""
    if tokens is None or tokens >= plan.setup.micro_batch_tokens:
        return plan
    setup = replace(plan.setup, micro_batch_tokens=tokens)
    return plan.with_setup(setup, _budget_reason(setup))


def graphs_line(plan: Plan) -> str | None:
    """Return a line about CUDA graphs; None if there are none and the job asks for none."""
    if plan.setup.cuda_graphs:
        return "passes are recorded as CUDA graphs"
    if plan.job.train.cuda_graphs is not True:
        return None
    return (
        "passes are not recorded as CUDA graphs: that needs an NVIDIA card of compute capability "
        "8.0 in bfloat16, without dropout where activations are recomputed"
    )


def _budget_reason(setup: Setup) -> str:
    return (
        f"micro-batches of {setup.micro_batch_tokens:,} tokens, the budget of the previous process"
    )


def identity_of(plan: Plan, base: str) -> Identity:
    """Return what a resumed run is checked against: job, rows, base model.

    Args:
        plan: with rows.
        base: fingerprint of the base model's files.
    """
    prepared = plan.prepared
    return Identity(
        job=plan.job.model_dump(mode="json"),
        rows=prepared.train.sha256,
        eval_rows=None if prepared.eval is None else prepared.eval.sha256,
        sources=tuple((s.name, s.sha256 or s.commit) for s in prepared.report.sources),
        base=base,
        base_commit=plan.resolved.model.commit,
    )


def _refusals(draft: Draft, job: Job, output: Path | None) -> Refusals:
    """Look at the run directory and at the data that a job names.

    Args:
        draft: what the user wrote.
        job: complete.
        output: the folder of a new run; None where it is not to be looked at.
    """
    taken: JobError | RunBusyError | None = None
    missing: JobError | None = None
    if output is not None:
        try:
            check_free(output)
        except (JobError, RunBusyError) as error:
            taken = error
    try:
        check_data_given(draft, job)
    except JobError as error:
        missing = error
    return Refusals(output=taken, data=missing)
