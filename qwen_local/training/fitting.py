"""Choose `train.micro_batch_tokens: auto` and `train.gradient_checkpointing: auto` by memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from qwen_local.backends.base import Setup
from qwen_local.backends.cost import cost_of, estimate_memory
from qwen_local.backends.memory import Workload

SMALLEST = 256
"""Smallest budget to try, in tokens; a smaller one saves nothing."""

TINY = 4
"""Recomputing activations is faster than a budget smaller than the favorite by this factor."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A setup with the chosen budget and checkpointing, and the reason."""

    setup: Setup
    reason: str


def fit(
    setup: Setup,
    workload: Workload,
    *,
    budget: Literal["auto"] | int,
    checkpointing: Literal["auto"] | bool,
) -> Fit:
    """Choose the budget of a micro-batch, and whether to recompute activations.

    The budget is the device's favorite, halved until it fits. Activations are recomputed only if
    the budget would be too small otherwise. If nothing fits, the smallest need is chosen.

    Args:
        setup: of the engine; its own budget and checkpointing are ignored.
        workload: of the run.
        budget: `train.micro_batch_tokens` of the job.
        checkpointing: `train.gradient_checkpointing` of the job.
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
        return Fit(tried(sizes[-1], way), f"{_kept(way)}; it still does not fit")
    size = best[way]
    if budget != "auto":
        because = "as the job sets it"
    elif size == favorite:
        because = f"the most that a {_chip(setup)} gains from"
    else:
        because = f"as {2 * size:,} would not fit"
    tokens = "1 token" if size == 1 else f"{size:,} tokens"
    chosen = f"{tokens} computed at once, {because}"
    why = ""
    if way and checkpointing == "auto":
        without = f"only {best[False]:,} tokens" if best[False] else "nothing"
        why = f", as {without} would fit otherwise"
    return Fit(tried(size, way), f"{chosen}; {_kept(way)}{why}")


def _halved(size: int) -> list[int]:
    return [size, *_halved(size // 2)] if size > SMALLEST else [size]


def _kept(way: bool) -> str:
    return "activations are recomputed" if way else "activations are kept"


def _chip(setup: Setup) -> str:
    return setup.device.upper()
