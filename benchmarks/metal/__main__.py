"""The MLX path of this project on your Mac: is it right, how fast, how large.

    benchmarks/metal/run
    benchmarks/metal/run --only curves --only compiled
    benchmarks/metal/run --device cpu --output /tmp/rehearsal

Everything in under nine minutes, with models made on the spot: nothing is downloaded. It writes one
file, benchmarks/results/metal-<chip>.json, after every part: send it in (docs/owners.md says how).
The most valuable parts come first, and those that do not fit into the time are named.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks import agreement, answer_speed, speed
from benchmarks.agreement import Place
from benchmarks.command_line import command_line
from benchmarks.environment import environment
from benchmarks.parts import Device, Figure, Part, main

BUDGET = 520
"""Seconds: twenty below nine minutes, for the last part to be ended."""
PACKAGES = ("mlx", "mlx-lm", "mlx-metal", "torch", "transformers", "peft")
PAIRS = ("Qwen3-0.6B/code-alpaca", "Qwen3-0.6B/movielens")
"""Of `benchmarks.peers`."""
MAKES_MODELS = ("torch", "transformers")
"""What random weights are made by."""


def here(device: Device) -> Place:
    """The engine that is looked at."""
    return Place(engine="mlx", device=device)


def there() -> Place:
    """What it is held against: PyTorch on the CPU, where it is installed."""
    return Place(engine="cuda" if find_spec("peft") else "mlx", device="cpu")


def curves(device: Device, folder: Path) -> Iterator[Figure]:
    """float32 on Metal against the CPU, bfloat16 against float32."""
    yield from agreement.same_curves(here(device), there())


def padding(device: Device, folder: Path) -> Iterator[Figure]:
    """Rows together against each alone."""
    yield from agreement.together_or_alone(here(device))


def four_bits(device: Device, folder: Path) -> Iterator[Figure]:
    """MLX's 4 bits against bfloat16."""
    yield from agreement.four_bits(here(device))


def compiled(device: Device, folder: Path) -> Iterator[Figure]:
    """The compiled step against the plain one."""
    from benchmarks.metal.compiled import compiled_or_not

    yield from compiled_or_not(device, folder)


def resume(device: Device, folder: Path) -> Iterator[Figure]:
    """A state handed on, and the command line's checkpoints."""
    yield from agreement.resumed(here(device))
    yield from command_line(here(device))


def answers(device: Device, folder: Path) -> Iterator[Figure]:
    """Greedy answers on Metal and on the CPU."""
    yield from agreement.answers(here(device), there())


def answer_timing(device: Device, folder: Path) -> Iterator[Figure]:
    """Greedy answers in the model's dtype, timed."""
    yield from answer_speed.answer_speed(here(device), folder)


def step(device: Device, folder: Path) -> Iterator[Figure]:
    """Where the time and the memory of a step go."""
    from benchmarks.metal.step import step_costs

    yield from step_costs(device, folder)


peers = partial(speed.peers, pairs=PAIRS, steps=30, rounds=1)

PARTS = (
    # These fit into `BUDGET` together.
    Part(name="environment", work=partial(environment, PACKAGES, "mlx"), seconds=40),
    Part(name="curves", work=curves, seconds=60),
    Part(name="padding", work=padding, seconds=40),
    Part(name="4 bits", work=four_bits, seconds=40),
    Part(name="step", work=step, seconds=80, needs=MAKES_MODELS),
    Part(name="compiled", work=compiled, seconds=70, needs=MAKES_MODELS),
    Part(name="answer speed", work=answer_timing, seconds=40, needs=MAKES_MODELS),
    Part(name="resume", work=resume, seconds=60),
    Part(name="peers", work=peers, seconds=90, needs=MAKES_MODELS),
    # These are for more time.
    Part(name="answers", work=answers, seconds=40),
    Part(
        name="memory",
        work=partial(speed.foretold_memory, backend="mlx"),
        seconds=240,
        needs=MAKES_MODELS,
    ),
)

if __name__ == "__main__":
    main(PARTS, module="benchmarks.metal", name="metal", about=__doc__, budget=BUDGET)
