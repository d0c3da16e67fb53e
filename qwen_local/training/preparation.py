"""Checks and engine setup of a job, shared by `train` and `plan`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np

from qwen_local.backends.base import Setup
from qwen_local.backends.cost import cost_of, estimate_memory
from qwen_local.backends.machine import Capability
from qwen_local.backends.memory import Workload
from qwen_local.backends.probe import in_a_line
from qwen_local.backends.process_memory import peak_resident_bytes
from qwen_local.datasets.prepare import Prepared
from qwen_local.errors import JobError
from qwen_local.job.schema import Job
from qwen_local.models.architecture import Architecture
from qwen_local.resolve.resolve import Resolved
from qwen_local.rows.planner import choose_widths
from qwen_local.training.fitting import Fit, fit


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedData:
    """The rows of a run, or their number if there is no tokenizer to make them with."""

    rows: int
    """Number of training rows."""
    eval_rows: int
    prepared: Prepared | None
    """None without a tokenizer."""
    description: str
    """Sources, and counts of their records, in words."""


def make_workload(job: Job, resolved: Resolved, data: PlannedData, *, trainable: int) -> Workload:
    """Return what the memory of a run depends on besides its setup.

    Args:
        job: complete.
        resolved: its model, engine and device.
        data: its rows. Without a tokenizer all rows count as `data.max_length` supervised tokens.
        trainable: number of adapter parameters.
    """
    choice, prepared = resolved.choice, data.prepared
    lengths_R = np.full(min(data.rows, job.train.batch_size), job.data.max_length)
    eval_tokens, supervised = data.eval_rows * job.data.max_length, 1.0
    if prepared is not None:
        lengths_R = prepared.train.lengths_R
        eval_tokens = 0 if prepared.eval is None else prepared.eval.tokens
        supervised = prepared.train.supervised / prepared.train.tokens
    return Workload(
        engine=choice.backend,
        trainable=trainable,
        lengths_R=lengths_R,
        eval_tokens=eval_tokens,
        supervised=supervised,
        batch_size=job.train.batch_size,
        steps=job.train.total_steps(data.rows),
        libraries=cost_of(choice.backend).library_bytes(
            choice.device, resident=peak_resident_bytes(), imported=sys.modules
        ),
        available=resolved.machine.bytes_on(choice.device),
    )


def make_setup(job: Job, resolved: Resolved, workload: Workload) -> Fit:
    """Return the setup of the engine, with the reason for its micro-batch budget.

    Args:
        job: complete.
        resolved: its model, engine and device; the model may be an architecture without files.
        workload: of the run.
    """
    compiled = cost_of(resolved.choice.backend).compiles(resolved.choice.device)
    setup = resolved.setup(
        lora=job.lora,
        seed=job.train.seed,
        weight_decay=job.train.weight_decay,
        max_grad_norm=job.train.max_grad_norm,
        widths=choose_widths(workload.lengths_R) if compiled else (),
    )
    fitted = _fitted(job, setup, workload)
    return _with_graphs(fitted, job, workload, resolved.machine.gpu_capability)


def _fitted(job: Job, setup: Setup, workload: Workload) -> Fit:
    return fit(
        setup,
        workload,
        budget=job.train.micro_batch_tokens,
        checkpointing=job.train.gradient_checkpointing,
    )


def _with_graphs(fitted: Fit, job: Job, workload: Workload, capability: Capability | None) -> Fit:
    """Return the fit with CUDA graphs where the job asks for them, or where they pay and fit."""
    asked, cost = job.train.cuda_graphs, cost_of(workload.engine)
    if not asked or not cost.can_record(fitted.setup, capability):
        return fitted
    setup = replace(fitted.setup, cuda_graphs=True)
    if asked == "auto":
        pays = cost.launch_bound(fitted.setup, workload, capability)
        fits = estimate_memory(setup, workload).fits
        return replace(fitted, setup=setup) if pays and fits else fitted
    again = _fitted(job, setup, workload)  # as graphs take memory
    return again if cost.can_record(again.setup, capability) else fitted


def trainable_parameters(job: Job, architecture: Architecture) -> int:
    """Count the parameters of the job's adapter on this model.

    Raises:
        JobError: `lora.layers` asks for more blocks than the model has.
    """
    blocks = len(job.lora.blocks(architecture.layers))
    return architecture.lora_parameters(job.lora.rank, job.lora.target_names, blocks)


def check_length(job: Job, architecture: Architecture) -> None:
    """Check that rows are no longer than the model's positions.

    Raises:
        JobError: they can be longer.
    """
    if job.data.max_length > architecture.positions:
        raise JobError.at(
            "data.max_length",
            f"expected at most the {architecture.positions} positions of {job.model.name}; "
            f"found {job.data.max_length}",
            f"set it to {architecture.positions} or less",
        )


def check_report_to(job: Job) -> None:
    """Check that tensorboard can be imported if the job reports to it.

    Raises:
        JobError: it cannot, for example because versions conflict.
    """
    if "tensorboard" not in job.train.report_to:
        return
    try:
        import qwen_local.training.tensorboard  # noqa: F401
    except Exception as error:  # whatever a broken installation raises
        raise JobError.at(
            "train.report_to",
            f"tensorboard cannot be imported: {in_a_line(error)}",
            "pip install --upgrade tensorboard protobuf, or set train.report_to=[]",
        ) from None
