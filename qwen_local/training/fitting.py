"""`train.micro_batch_tokens: auto` and `train.gradient_checkpointing: auto`: what memory allows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from qwen_local.backends.base import Setup
from qwen_local.backends.cost import cost_of, estimate_memory
from qwen_local.backends.memory import Workload

SMALLEST = 256
"""Below it nothing is gained by going on."""

TINY = 4
"""A budget under the favorite by more than this costs more time than recomputing activations."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What was chosen, and why."""

    setup: Setup
    reason: str


def fit(
    setup: Setup,
    workload: Workload,
    *,
    budget: Literal["auto"] | int,
    checkpointing: Literal["auto"] | bool,
) -> Fit:
    """Choose the budget of a micro-batch, and whether activations are recomputed.

    Activations are kept as long as a fair budget then fits; the budget is what the device likes
    best, halved until it fits. Where nothing fits, the least need is chosen.

    Args:
        setup: of the engine; what it says of the two is not looked at.
        workload: of the run.
        budget: as the job has it.
        checkpointing: as the job has it.
    """
    favorite = cost_of(workload.engine).favorite_tokens(setup.device)
    sizes = [budget] if budget != "auto" else _halved(favorite)
    ways = [checkpointing] if checkpointing != "auto" else [False, True]

    def tried(size: int, way: bool) -> Setup:
        return replace(setup, micro_batch_tokens=size, gradient_checkpointing=way)

    def fits(size: int, way: bool) -> bool:
        return estimate_memory(tried(size, way), workload).fits

    best = {way: next((size for size in sizes if fits(size, way)), 0) for way in ways}
    way = ways[0] if best[ways[0]] * TINY >= favorite else max(ways, key=lambda w: best[w])
    if not any(best.values()):
        way = ways[-1]
        said = "it still does not fit"
        return Fit(tried(sizes[-1], way), f"{_kept(way)}; {said}")
    size = best[way]
    if budget != "auto":
        because = "as the job says"
    elif size == favorite:
        because = f"the most that a {_chip(setup)} gains from"
    else:
        because = f"as {2 * size:,} would not fit"
    tokens = "1 token" if size == 1 else f"{size:,} tokens"
    said = f"{tokens} computed at once, {because}"
    why = ""
    if way and checkpointing == "auto":
        without = f"only {best[False]:,} tokens" if best[False] else "nothing"
        why = f", as {without} would fit otherwise"
    return Fit(tried(size, way), f"{said}; {_kept(way)}{why}")


def _halved(size: int) -> list[int]:
    return [size, *_halved(size // 2)] if size > SMALLEST else [size]


def _kept(way: bool) -> str:
    return "activations are recomputed" if way else "activations are kept"


def _chip(setup: Setup) -> str:
    return setup.device.upper()
