"""How fast and how large: what other programs in `benchmarks/` measure, a case at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.parts import Device, Figure, check
from benchmarks.roofline import measure_all

ROUNDS: dict[Device, int] = {"gpu": 7, "cpu": 2}


def rooflines(device: Device, folder: Path, models: tuple[str, ...]) -> Iterator[Figure]:
    """`benchmarks.roofline` of some models; on a CPU of a small one in their place."""
    chosen = models if device == "gpu" else ("mlx",)
    yield from measure_all(device, chosen, ROUNDS[device], folder)


def peers(device: Device, folder: Path, *, rounds: int, steps: int) -> Iterator[Figure]:
    """`benchmarks.peers`; on a CPU one short comparison, on the embedded model."""
    from benchmarks.peers.__main__ import comparisons, plain
    from benchmarks.peers.turns import compared

    only = None if device == "gpu" else "tiny/code-alpaca"
    if device == "cpu":
        rounds, steps = 1, 4
    for one in comparisons(device, only, []):
        found = compared(one, folder, {}, device, rounds=rounds, steps=steps)
        content: dict[str, Any] = json.loads(json.dumps(found, default=plain))
        yield {"comparison": one.name, "rounds": rounds, "steps": steps, **content}
        yield check(f"reasons why {one.name} is void", len(content["void"]), at_most=0)


def foretold_memory(device: Device, folder: Path, backend: str) -> Iterator[Figure]:
    """`benchmarks.plan_accuracy`; on a CPU of the embedded model."""
    from benchmarks.plan_accuracy import SETTINGS, WITHIN, Case, measure

    models = {"cuda": ("Qwen3-0.6B", "Qwen3-1.7B"), "mlx": ("hidden-512", "Qwen3-0.6B")}[backend]
    for model in models if device == "gpu" else ("tiny",):
        for setting in SETTINGS:
            case = Case(model=model, backend=backend, device=device, setting=setting)
            found = measure(case, folder)
            yield found
            said = f"peak memory, {model}, {setting}: away from what was foretold"
            yield check(said, abs(found["ratio"] - 1), at_most=WITHIN[device])
