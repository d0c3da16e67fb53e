"""When to quantise the frozen model, and when not to."""

from __future__ import annotations

from dataclasses import replace

from qwen_local.backends.base import Setup
from qwen_local.backends.machine import Engine
from qwen_local.job import Quantization
from qwen_local.training.memory import USABLE, estimate_memory

NF4_IS_SLOW = (
    " (on NVIDIA cards NF4 slows models up to about 1.5B by some 40 %, bitsandbytes issue 1851)"
)
SMALL = 2 * 10**9
"""Parameters of a model that this holds for; 1.5B and 1.7B have up to 1.8 billion."""


def quantization_advice(
    setup: Setup, *, engine: Engine, trainable: int, longest: int, available: int
) -> str | None:
    """What to know of this `model.quantization`, in words; None where it is well chosen.

    Another choice is estimated with everything else as it is, `micro_batch_tokens` among it.

    Args:
        setup: of the engine.
        engine: which one.
        trainable: adapter parameters.
        longest: positions of the longest row.
        available: bytes of the device.
    """

    def need(quantization: Quantization) -> int:
        chosen = replace(setup, quantization=quantization)
        return estimate_memory(
            chosen, trainable=trainable, longest=longest, available=available
        ).total

    def share(total: int) -> str:
        return f"about {total / 1e9:.2f} of the {available / 1e9:.2f} GB"

    def fits(quantization: Quantization) -> bool:
        return need(quantization) <= USABLE * available  # as train.micro_batch_tokens=auto has it

    if setup.quantization == "none":
        if fits("none") or not fits("4bit"):
            return None
        return f"model.quantization=4bit would leave room, with {share(need('4bit'))}"
    saves = f"{setup.quantization[0]}-bit saves memory, not time"
    if fits("none"):
        nf4 = engine == "cuda" and setup.device == "gpu" and setup.quantization == "4bit"
        slow = NF4_IS_SLOW if nf4 and setup.model.architecture.parameters() <= SMALL else ""
        return f"model.quantization=none fits, with {share(need('none'))}; {saves}{slow}"
    return f"{saves}, on a CPU" if setup.device == "cpu" else None
