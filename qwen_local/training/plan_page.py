"""A plan as `plan` prints it: JSON, or a page for a person."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qwen_local.backends.memory import USABLE
from qwen_local.datasets.prepare import Prepared
from qwen_local.datasets.report import Histogram
from qwen_local.errors import JobError
from qwen_local.training.advice import (
    evaluation_advice,
    free_memory_warning,
    memory_hint,
    quantization_advice,
)
from qwen_local.training.plan import MORE_ROOM, Plan, graphs_line

BAR = 40
"""Width of the histogram's longest bar."""

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
"""Parts of `Memory` in the order of the page. `loading` is free again when training starts."""


def plan_json(plan: Plan, elsewhere: str | None = None) -> dict[str, Any]:
    """Return what `plan --json` prints.

    Args:
        plan: the plan.
        elsewhere: name of the machine that it is for; None for the present one.
    """
    schedule = plan.schedule
    prepared, job = plan.data.prepared, plan.job
    total = plan.total_parameters
    memory = plan.memory
    fits = memory.fits
    return {
        "machine": elsewhere or "here",
        "job": job.model_dump(mode="json"),
        "backend": plan.resolved.choice.backend,
        "device": plan.resolved.choice.device,
        "reason": plan.resolved.choice.reason,
        "dtype": plan.resolved.dtype,
        "trainable_parameters": plan.trainable,
        "total_parameters": total,
        "trainable_percent": 100 * plan.trainable / total,
        "data": _data(plan),
        "rows": plan.data.rows,
        "eval_rows": plan.data.eval_rows,
        "steps_per_epoch": schedule.steps_per_epoch,
        "optimizer_steps": schedule.steps,
        "warmup_steps": schedule.warmup,
        "evaluations": schedule.evaluations,
        "eval_every": schedule.eval_every,
        "evaluation_percent": 100 * schedule.evaluation_share,
        "evaluation_advice": _evaluation_advice(plan),
        "supervised_tokens": None if prepared is None else prepared.train.supervised,
        "tokens": None if prepared is None else prepared.train.tokens,
        "histogram": None if prepared is None else asdict(_lengths(prepared)),
        "histogram_missing": _without_tokenizer(plan),
        "micro_batch_tokens": plan.setup.micro_batch_tokens,
        "gradient_checkpointing": plan.setup.gradient_checkpointing,
        "cuda_graphs": plan.setup.cuda_graphs,
        "memory_reason": plan.memory_reason,
        "memory": memory.to_json(),
        "memory_hint": None if fits else memory_hint(job, plan.setup, plan.workload),
        "memory_warning": free_memory_warning(memory, plan.resolved.machine.gpu_free_bytes),
        "advice": quantization_advice(plan.setup, plan.workload),
        "disk_bytes": plan.disk_bytes,
        "disk_free_bytes": plan.disk_free_bytes,
        "output": str(plan.output),
        "output_taken": _output_taken(plan),
        "refusals": [str(error) for error in plan.refusals],
    }


def plan_page(plan: Plan, elsewhere: str | None = None) -> str:
    """Return the page that `plan` prints; the arguments are those of `plan_json`."""
    choice, memory = plan.resolved.choice, plan.memory
    total = plan.total_parameters
    schedule = plan.schedule
    lines = [] if elsewhere is None else [f"machine     {elsewhere}"]
    lines += [
        f"model       {plan.resolved.source.name}",
        f"backend     {choice.backend} on the {choice.device} in {plan.resolved.dtype} "
        f"({choice.reason})",
        f"parameters  {plan.trainable:,} trainable of {total:,} "
        f"({100 * plan.trainable / total:.4g} %)",
        f"data        {_data(plan)}",
        f"adapter     {_adapter(plan)}",
        f"steps       {schedule.steps:,} ({schedule.steps_per_epoch:,} an epoch), "
        f"warm-up {schedule.warmup:,}; {_rate(plan)}",
        _evaluation(plan),
        *_tokens(plan),
        f"memory      {plan.memory_reason}",
        *([f"            {line}"] if (line := graphs_line(plan)) is not None else []),
    ]
    sizes = {part: getattr(memory, part) for part in PARTS}
    lines += [f"  {part:<12}{size / 1e9:>8.2f} GB" for part, size in sizes.items() if size]
    lines.append(f"  of the {choice.device:<5}{memory.available / 1e9:>8.2f} GB")
    usable = USABLE * memory.available / 1e9
    tight = f"  it does not fit: at most {USABLE:.0%} may be used, {usable:.2f} GB"
    lines.append("  it fits" if memory.fits else tight)
    if (warning := free_memory_warning(memory, plan.resolved.machine.gpu_free_bytes)) is not None:
        lines.append(f"  {warning}")
    if plan.data.prepared is None:
        lines.append(
            f"  with {plan.job.data.max_length:,} tokens in every row, as the rows are not known"
        )
    if (advice := quantization_advice(plan.setup, plan.workload)) is not None:
        lines.append(f"  advice: {advice}")
    if not memory.fits:
        lines.append(f"\nhint: {memory_hint(plan.job, plan.setup, plan.workload)}\n")
    lines.append(f"disk        up to {plan.disk_bytes / 1e9:.2f} GB{_room(plan)}")
    taken = _output_taken(plan)
    refused = f"\n  train refuses it: {taken}" if taken else ""
    lines.append(f"output      {plan.output}{refused}")
    return "\n".join(lines)


def _data(plan: Plan) -> str:
    if plan.refusals.data is not None:
        return (
            f"{plan.data.description}\n  the sample data, as none is given: train will ask for "
            "`data`"
        )
    return plan.data.description


def _output_taken(plan: Plan) -> str | None:
    """Why `train` refuses the output folder, or None."""
    taken = plan.refusals.output
    if isinstance(taken, JobError):
        return taken.faults[0].problem
    return None if taken is None else str(taken).partition("\n")[0]


def _room(plan: Plan) -> str:
    if plan.disk_free_bytes is None:
        return ""
    room = f" of the {plan.disk_free_bytes / 1e9:.2f} GB that are free"
    if plan.refusals.disk is not None:
        room += f"\n\nhint: {MORE_ROOM}\n"
    return room


def _adapter(plan: Plan) -> str:
    lora = plan.job.lora
    scaled = "alpha / sqrt(rank)" if lora.rslora else "alpha / rank"
    on = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
    blocks = "all blocks" if lora.layers == "all" else f"the last {lora.layers} blocks"
    return (
        f"rank {lora.rank}, alpha {lora.alpha:g} (scale {scaled}), "
        f"dropout {lora.dropout:g}; {on} of {blocks}"
    )


def _rate(plan: Plan) -> str:
    train = plan.job.train
    return f"batch {train.batch_size}, learning rate {train.learning_rate:g}, {train.schedule}"


def _evaluation(plan: Plan) -> str:
    schedule = plan.schedule
    if not schedule.evaluations:
        return "evaluation  none: there are no rows for it"
    line = (
        f"evaluation  {schedule.evaluations:,} times, every {schedule.eval_every:,} steps: about "
        f"{100 * schedule.evaluation_share:.0f} % of the time"
    )
    advice = _evaluation_advice(plan)
    return line if advice is None else f"{line}\n  {advice}"


def _evaluation_advice(plan: Plan) -> str | None:
    return evaluation_advice(
        plan.job.train, plan.schedule, rows=plan.data.rows, eval_rows=plan.data.eval_rows
    )


def _without_tokenizer(plan: Plan) -> str | None:
    if plan.data.prepared is not None:
        return None
    return f"{plan.resolved.source.name} is not on this machine, so there is no tokenizer"


def _tokens(plan: Plan) -> list[str]:
    prepared = plan.data.prepared
    if prepared is None:
        return [f"tokens      unknown: {_without_tokenizer(plan)}"]
    tokens, supervised = prepared.train.tokens, prepared.train.supervised
    return [
        f"tokens      {tokens:,} an epoch, {supervised:,} of them "
        f"supervised ({supervised / tokens:.0%})",
        "lengths     of all conversations, in tokens",
        *_bars(_lengths(prepared)),
    ]


def _lengths(prepared: Prepared) -> Histogram:
    return Histogram.sum(source.lengths for source in prepared.report.sources)


def _bars(histogram: Histogram) -> list[str]:
    most = max(histogram.counts)
    return [
        f"  {low + 1:>6}-{high:<6}{count:>8,}  {'#' * round(BAR * count / most)}".rstrip()
        for low, high, count in zip(
            histogram.edges, histogram.edges[1:], histogram.counts, strict=False
        )
    ]
