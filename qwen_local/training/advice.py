"""When to quantise the frozen model and when not to, and when evaluation is too dear."""

from __future__ import annotations

from dataclasses import replace

from qwen_local.backends.base import Setup
from qwen_local.job import Quantization, TrainSpec
from qwen_local.training.memory import Memory, Workload, estimate_memory
from qwen_local.training.schedule import Schedule, make_schedule

NF4_IS_SLOW = (
    " (on NVIDIA cards NF4 slows models up to about 1.5B by some 40 %, bitsandbytes issue 1851)"
)
SMALL = 2 * 10**9
"""Parameters of a model that this holds for; 1.5B and 1.7B have up to 1.8 billion."""


def quantization_advice(setup: Setup, workload: Workload) -> str | None:
    """What to know of this `model.quantization`, in words; None where it is well chosen.

    Another choice is estimated with everything else as it is, `micro_batch_tokens` among it.
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
        on_card = workload.engine == "cuda" and setup.device == "gpu"
        nf4 = on_card and setup.quantization == "4bit"
        slow = NF4_IS_SLOW if nf4 and setup.model.architecture.parameters() <= SMALL else ""
        return f"model.quantization=none fits, with {share(need('none'))}; {saves}{slow}"
    return f"{saves}, on a CPU" if setup.device == "cpu" else None


def evaluation_advice(
    train: TrainSpec, schedule: Schedule, *, rows: int, eval_rows: int
) -> str | None:
    """What to know of an `eval_every` by which evaluation takes longer than training, or None.

    Args:
        train: with the `eval_every` that was asked for.
        schedule: what it gives.
        rows: to train on.
        eval_rows: to evaluate on.
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
