"""Advice on quantization, memory that is too small or taken, and slow evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qwen_local.backends.base import Setup
from qwen_local.backends.cost import cost_of, estimate_memory
from qwen_local.backends.memory import Memory, Workload
from qwen_local.job.schema import Job, Quantization, TrainSpec
from qwen_local.training.fitting import fit
from qwen_local.training.schedule import Schedule, make_schedule


def quantization_advice(setup: Setup, workload: Workload) -> str | None:
    """Return advice on `model.quantization`; None if it is well chosen.

    Other choices are estimated with the same settings, `micro_batch_tokens` among them.
    """

    def need(quantization: Quantization) -> Memory:
        return estimate_memory(replace(setup, quantization=quantization), workload)

    def share(memory: Memory) -> str:
        return f"about {memory.total / 1e9:.2f} of the {memory.available / 1e9:.2f} GB"

    if setup.quantization == "none":
        if need("none").fits or not need("4bit").fits:
            return None
        return f"model.quantization=4bit would leave room, with {share(need('4bit'))}"
    saves = f"{setup.quantization[0]}-bit saves memory, not time"
    if need("none").fits:
        slow = cost_of(workload.engine).slow_quantization(setup)
        return f"model.quantization=none fits, with {share(need('none'))}; {saves}{slow}"
    return f"{saves}, on a CPU" if setup.device == "cpu" else None


def free_memory_warning(memory: Memory, free_bytes: int | None) -> str | None:
    """Return a warning if a run that fits a GPU needs more than other programs leave of it now."""
    if free_bytes is None or memory.device != "gpu" or not memory.fits:
        return None
    if memory.total - memory.libraries <= free_bytes:  # the context of this process exists already
        return None
    return (
        f"only {free_bytes / 1e9:.2f} GB are free now: other programs hold the rest (nvidia-smi "
        "lists them), and less may be computed at once"
    )


SHORTEST = 256
"""Shortest rows that are advised, in tokens."""


def memory_hint(job: Job, setup: Setup, workload: Workload) -> str:
    """Return the smallest change that would make a run fit into memory.

    4-bit quantization comes before shorter rows.

    Args:
        job: complete.
        setup: of its engine.
        workload: of the run.
    """

    def fits(quantization: Quantization, length: int) -> bool:
        shorter = replace(workload, lengths_R=np.minimum(workload.lengths_R, length))
        tried = replace(setup, quantization=quantization)
        best = fit(tried, shorter, budget="auto", checkpointing="auto").setup
        return estimate_memory(best, shorter).fits

    changes = []
    if (job.train.micro_batch_tokens, job.train.gradient_checkpointing) != ("auto", "auto"):
        changes = ["train.micro_batch_tokens and train.gradient_checkpointing at auto"]
    own, longest = setup.quantization, job.data.max_length
    plain = own == "none" and setup.model.architecture.stored is None
    lengths = [longest]
    while lengths[-1] // 2 >= SHORTEST:
        lengths.append(lengths[-1] // 2)
    for length in lengths:
        for quantization in (own, "4bit") if plain else (own,):
            if fits(quantization, length):
                changes += ["`quantization=4bit`"] if quantization != own else []
                changes += [f"`max_length={length}`"] if length != longest else []
                return f"it fits with {', '.join(changes)}"
    return "take a smaller model, or a machine with more memory"


def evaluation_advice(
    train: TrainSpec, schedule: Schedule, *, rows: int, eval_rows: int
) -> str | None:
    """Return advice on an `eval_every` with which evaluation takes longer than training, or None.

    Args:
        train: has the requested `eval_every`.
        schedule: made from it.
        rows: number of training rows.
        eval_rows: number of evaluation rows.
    """
    share = schedule.evaluation_share
    if train.eval_every == "auto" or share <= 0.5:
        return None
    auto = make_schedule(
        train.model_copy(update={"eval_every": "auto"}), rows=rows, eval_rows=eval_rows
    )
    return (
        f"evaluation would take about {share / (1 - share):.1f} times as long as training; "
        f"train.eval_every=auto evaluates every {auto.eval_every:,} steps, about "
        f"{100 * auto.evaluation_share:.0f} % of the time"
    )
