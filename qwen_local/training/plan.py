"""What a job would do, worked out without loading a weight."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_local.adapters.lora import Origin
from qwen_local.backends.cost import USABLE, Memory, estimate_memory
from qwen_local.backends.quantization import check_quantization, choose_for
from qwen_local.backends.select import choose, probe, resolve_dtype
from qwen_local.datasets.count import count_rows
from qwen_local.datasets.prepare import Prepared
from qwen_local.datasets.report import Histogram
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import JobError, ModelError, RunBusyError
from qwen_local.files import free_bytes
from qwen_local.job.schema import Draft
from qwen_local.models.source import ModelFiles, ModelSource, fetch, find_model
from qwen_local.runs.directory import check_free, run_folder
from qwen_local.training.advice import evaluation_advice, memory_hint, quantization_advice
from qwen_local.training.disk import disk_need
from qwen_local.training.named_machines import named_machine
from qwen_local.training.preparation import (
    check_data_given,
    check_length,
    check_report_to,
    data_sources,
    data_told_too,
    make_setup,
    make_workload,
    prepare_data,
    trainable_parameters,
)
from qwen_local.training.schedule import make_schedule

BAR = 40
"""Width of the histogram's longest bar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What `plan --json` prints."""

    machine: str
    """`here`, or the name of another one."""
    job: dict[str, Any]
    backend: str
    device: str
    reason: str
    dtype: str
    trainable_parameters: int
    total_parameters: int
    trainable_percent: float
    data: str
    """The source and what becomes of its records, in words."""
    rows: int
    eval_rows: int
    steps_per_epoch: int
    optimizer_steps: int
    warmup_steps: int
    evaluations: int
    eval_every: int
    evaluation_percent: float
    """Expected share of the time that evaluation takes."""
    evaluation_advice: str | None
    """Where evaluation takes longer than training, what to set instead."""
    supervised_tokens: int | None
    """Of one pass over the training rows; None without a tokenizer."""
    tokens: int | None
    histogram: Histogram | None
    """Lengths of the training source's conversations; None without a tokenizer."""
    histogram_missing: str | None
    """Why there is none."""
    micro_batch_tokens: int
    """Positions computed at once."""
    gradient_checkpointing: bool
    """Whether activations are computed twice."""
    memory_reason: str
    """Why these two."""
    memory: Memory
    memory_hint: str | None
    """What to change where it does not fit."""
    advice: str | None
    """Of `model.quantization`, None where it is well chosen."""
    disk_bytes: int
    """Of the run's folder at its largest."""
    disk_free_bytes: int | None
    """Where the folder is or will be; None of another machine."""
    output: str
    output_taken: str | None
    """Why `train` would refuse the output folder, or None."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {**asdict(self), "memory": self.memory.to_json()}

    def describe(self) -> str:
        """The same for a person."""
        lines = [] if self.machine == "here" else [f"machine     {self.machine}"]
        lines += [
            f"backend     {self.backend} on the {self.device} in {self.dtype} ({self.reason})",
            f"parameters  {self.trainable_parameters:,} trainable of {self.total_parameters:,} "
            f"({self.trainable_percent:.4g} %)",
            f"data        {self.data}",
            f"adapter     {self._adapter()}",
            f"steps       {self.optimizer_steps:,} ({self.steps_per_epoch:,} an epoch), "
            f"warm-up {self.warmup_steps:,}; {self._rate()}",
            self._evaluation(),
            *self._tokens(),
            f"memory      {self.memory_reason}",
        ]
        sizes = {part: getattr(self.memory, part) for part in PARTS}
        lines += [f"  {part:<12}{size / 1e9:>8.2f} GB" for part, size in sizes.items() if size]
        lines.append(f"  of the {self.device:<5}{self.memory.available / 1e9:>8.2f} GB")
        usable = USABLE * self.memory.available / 1e9
        tight = f"  it does not fit: a tenth is to stay free, which leaves {usable:.2f} GB"
        lines.append("  it fits" if self.memory.fits else tight)
        if self.histogram is None:
            longest = f"{self.job['data']['max_length']:,}"
            lines.append(f"  with {longest} tokens in every row, as the rows are not known")
        if self.advice is not None:
            lines.append(f"  advice: {self.advice}")
        if self.memory_hint is not None:
            lines.append(f"\nhint: {self.memory_hint}\n")
        room = ""
        if self.disk_free_bytes is not None:
            room = f" of the {self.disk_free_bytes / 1e9:.2f} GB that are free"
            if self.disk_bytes > self.disk_free_bytes:
                room += (
                    "\n\nhint: make room, set output to a folder elsewhere, or lower train.keep\n"
                )
        lines.append(f"disk        up to {self.disk_bytes / 1e9:.2f} GB{room}")
        taken = f"\n  train will not write there: {self.output_taken}" if self.output_taken else ""
        lines.append(f"output      {self.output}{taken}")
        return "\n".join(lines)

    def _adapter(self) -> str:
        lora = self.job["lora"]
        scaled = "alpha / sqrt(rank)" if lora["rslora"] else "alpha / rank"
        targets = lora["targets"]
        on = targets if isinstance(targets, str) else ", ".join(targets)
        blocks = "all blocks" if lora["layers"] == "all" else f"the last {lora['layers']} blocks"
        return (
            f"rank {lora['rank']}, alpha {lora['alpha']:g} (scale {scaled}), "
            f"dropout {lora['dropout']:g}; {on} of {blocks}"
        )

    def _rate(self) -> str:
        train = self.job["train"]
        return (
            f"batch {train['batch_size']}, learning rate {train['learning_rate']:g}, "
            f"{train['schedule']}"
        )

    def _evaluation(self) -> str:
        if not self.evaluations:
            return "evaluation  none: there are no rows for it"
        said = (
            f"evaluation  {self.evaluations:,} times, every {self.eval_every:,} steps: about "
            f"{self.evaluation_percent:.0f} % of the time"
        )
        return said if self.evaluation_advice is None else f"{said}\n  {self.evaluation_advice}"

    def _tokens(self) -> list[str]:
        if self.histogram is None:
            return [f"tokens      unknown: {self.histogram_missing}"]
        assert self.tokens is not None and self.supervised_tokens is not None
        share = self.supervised_tokens / self.tokens
        lines = [
            f"tokens      {self.tokens:,} an epoch, {self.supervised_tokens:,} of them "
            f"supervised ({share:.0%})",
            "lengths     of all conversations, in tokens",
        ]
        most = max(self.histogram.counts)
        for low, high, count in zip(
            self.histogram.edges, self.histogram.edges[1:], self.histogram.counts, strict=False
        ):
            bar = "#" * round(BAR * count / most)
            lines.append(f"  {low + 1:>6}-{high:<6}{count:>8,}  {bar}".rstrip())
        return lines


PARTS = (
    "libraries",
    "weights",
    "loading",
    "adapter",
    "optimizer",
    "activations",
    "head",
    "cache",
    "total",
)
"""Of `Memory`, as they are shown. What `loading` takes is gone when training begins."""


def make_plan(draft: Draft, *, backend: str, device: str, elsewhere: str | None = None) -> Plan:
    """Work out a job: its resolved values, counts, steps, data, and memory.

    Args:
        draft: the job.
        backend: as `--backend`.
        device: as `--device`.
        elsewhere: the name of another machine that it is worked out for, or None for this one.

    Raises:
        InputError: whatever `train` would refuse before it loads a weight.
    """
    if elsewhere is None:
        machine = probe()
    else:
        machine = named_machine(elsewhere, backend=backend, device=device)
    choose(machine, backend, device)  # before anything is fetched: whether it can be at all
    with data_told_too(draft):
        source = find_model(draft.model.name, draft.model.revision)
        architecture = source.architecture(download=False)
    job = draft.complete(architecture.parameters())
    choice = choose_for(machine, backend, device, architecture, Origin())
    check_quantization(machine, choice, source.name, architecture, job.model.quantization)
    output, taken = run_folder(job), None
    try:
        check_free(output)
    except JobError as error:
        taken = error.faults[0].problem
    except RunBusyError as error:
        taken = str(error).partition("\n")[0]
    check_length(job, architecture)
    check_report_to(job)
    trainable = trainable_parameters(job, architecture)
    total = architecture.parameters() + trainable
    tokenizer, missing = _tokenizer(source)
    prepared: Prepared | None = None
    if tokenizer is None:
        train, evaluation = data_sources(job)
        counted = count_rows(
            train=train,
            eval=evaluation,
            eval_fraction=job.data.eval_fraction,
            seed=job.train.seed,
        )
        rows, eval_rows = counted.train, counted.eval
        names = ", ".join(source.name for source in train)
        data = f"{names}: {rows:,} rows to train on, {eval_rows:,} to evaluate on"
    else:
        prepared = prepare_data(job, tokenizer, quiet=False)
        rows = len(prepared.train)
        eval_rows = 0 if prepared.eval is None else len(prepared.eval)
        data = prepared.report.describe()
    try:
        check_data_given(draft, job)
    except JobError:
        data += "\n  the sample data, as none is given: train will ask for --data"
    schedule = make_schedule(job.train, rows=rows, eval_rows=eval_rows)
    dtype, _ = resolve_dtype(machine, choice, job.model.dtype)
    model = ModelFiles(
        name=source.name, folder=Path(), commit=None, config={}, architecture=architecture
    )
    workload = make_workload(job, machine, choice, prepared, trainable=trainable, rows=rows)
    fitted = make_setup(job, model, choice, dtype, workload)
    memory = estimate_memory(fitted.setup, workload)
    return Plan(
        machine=elsewhere or "here",
        job=job.model_dump(mode="json"),
        backend=choice.backend,
        device=choice.device,
        reason=choice.reason,
        dtype=dtype,
        trainable_parameters=trainable,
        total_parameters=total,
        trainable_percent=100 * trainable / total,
        data=data,
        rows=rows,
        eval_rows=eval_rows,
        steps_per_epoch=schedule.steps_per_epoch,
        optimizer_steps=schedule.steps,
        warmup_steps=schedule.warmup,
        evaluations=schedule.evaluations,
        eval_every=schedule.eval_every,
        evaluation_percent=100 * schedule.evaluation_share,
        evaluation_advice=evaluation_advice(job.train, schedule, rows=rows, eval_rows=eval_rows),
        supervised_tokens=None if prepared is None else prepared.train.supervised,
        tokens=None if prepared is None else prepared.train.tokens,
        histogram=None if prepared is None else prepared.report.sources[0].lengths,
        histogram_missing=missing,
        micro_batch_tokens=fitted.setup.micro_batch_tokens,
        gradient_checkpointing=fitted.setup.gradient_checkpointing,
        memory_reason=fitted.reason,
        output=str(output),
        output_taken=taken,
        memory=memory,
        memory_hint=None if memory.fits else memory_hint(job, fitted.setup, workload),
        advice=quantization_advice(fitted.setup, workload),
        disk_bytes=disk_need(trainable, keep=job.train.keep, steps=schedule.steps),
        disk_free_bytes=free_bytes(output) if elsewhere is None else None,
    )


def _tokenizer(source: ModelSource) -> tuple[ChatTokenizer | None, str | None]:
    """(the tokenizer, None), or (None, why there is none) for a hub model that is not here."""
    try:
        files = fetch(source, weights=source.kind == "hub", download=False)
    except ModelError:
        if source.kind != "hub":
            raise
        return None, f"{source.name} is not on this machine, so there is no tokenizer"
    return ChatTokenizer.load(files.folder), None
