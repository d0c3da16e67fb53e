"""How fast and how large: what other programs in `benchmarks/` measure, a case at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.parts import Device, Figure, check, skipped
from benchmarks.peers.models import no_room
from benchmarks.roofline import measure_all
from qwen_local.backends.probe import probe

ROUNDS: dict[Device, int] = {"gpu": 7, "cpu": 2}


def rooflines(device: Device, folder: Path, models: tuple[str, ...]) -> Iterator[Figure]:
    """`benchmarks.roofline` of some models; on a CPU of a small one in their place."""
    for model in models if device == "gpu" else ("mlx",):
        if reason := no_room(model, probe().gpu_bytes, folder):
            yield skipped(reason)
        else:
            yield from measure_all(device, (model,), ROUNDS[device], folder)


def peers(
    device: Device, folder: Path, *, pairs: tuple[str, ...], steps: int, rounds: int
) -> Iterator[Figure]:
    """Comparisons of `benchmarks.peers`; on a CPU a short one, on the embedded model.

    Args:
        device: where.
        folder: where models are made.
        pairs: the names of the comparisons, each of which is handed over when it ends.
        steps: of a process.
        rounds: turns of every tool.
    """
    from benchmarks.peers.__main__ import comparisons
    from benchmarks.peers.turns import compared
    from benchmarks.peers.work import FailedError

    if device == "cpu":
        pairs, rounds, steps = ("tiny/code-alpaca",), 1, 4
    for name in pairs:
        (one,) = comparisons(device, name, [])
        if reason := no_room(one.model, probe().gpu_bytes, folder):
            yield {"comparison": name, **skipped(reason)}
            continue
        try:
            found = compared(one, folder, {}, device, rounds=rounds, steps=steps)
        except FailedError as error:
            found = {"failed": str(error), "void": [str(error)]}
        content: dict[str, Any] = json.loads(json.dumps(found, default=asdict))
        yield {"comparison": name, "rounds": rounds, "steps": steps, **content}
        yield check(f"reasons why {name} is void", len(content["void"]), at_most=0)


def foretold_memory(device: Device, folder: Path, backend: str) -> Iterator[Figure]:
    """`benchmarks.plan_accuracy`; on a CPU of the embedded model."""
    from benchmarks.plan_accuracy import SETTINGS, WITHIN, Case, measure

    models = {"cuda": ("Qwen3-0.6B", "Qwen3-1.7B"), "mlx": ("small", "Qwen3-0.6B")}[backend]
    for model in models if device == "gpu" else ("tiny",):
        for setting in SETTINGS:
            case = Case(model=model, backend=backend, device=device, setting=setting)
            found = measure(case, folder)
            yield found
            said = f"peak memory, {model}, {setting}: away from what was foretold"
            yield check(said, abs(found["ratio"] - 1), at_most=WITHIN[device])
