"""The CUDA path of this project on your card: is it right, how fast, how large.

    benchmarks/gpu/run
    benchmarks/gpu/run --only attention --only "out of memory"
    benchmarks/gpu/run --device cpu --output /tmp/rehearsal

Everything in under nine minutes, with models made on the spot: nothing is downloaded. It writes one
file, benchmarks/results/gpu-<card>.json, after every part: send it in (docs/benchmarks.md says
how). Parts whose packages are not installed are skipped, and what the time did not suffice for is
said.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import agreement, speed
from benchmarks.agreement import Place
from benchmarks.command_line import command_line
from benchmarks.environment import environment
from benchmarks.parts import Device, Figure, Part, main

BUDGET = 520
"""Seconds: twenty below nine minutes, for the last part to be ended."""
PACKAGES = (
    *("torch", "transformers", "peft", "bitsandbytes", "triton", "flash-attn", "liger-kernel"),
    *("cut-cross-entropy", "trl", "unsloth", "llamafactory", "accelerate", "datasets"),
)


def here(device: Device) -> Place:
    """The engine that is looked at."""
    return Place(engine="cuda", device=device)


CPU = Place(engine="cuda", device="cpu")
PAIRS = ("Qwen3-0.6B/code-alpaca", "Qwen3-0.6B/movielens", "Qwen3-1.7B/code-alpaca")
"""Of `benchmarks.peers`: what a few minutes suffice for."""


def curves(device: Device, folder: Path) -> Iterator[Figure]:
    """float32 on the card against the CPU, bfloat16 against float32."""
    yield from agreement.same_curves(here(device), CPU)


def packing(device: Device, folder: Path) -> Iterator[Figure]:
    """Rows packed against each alone."""
    from benchmarks.gpu.cuda_path import one_row_at_a_time

    yield from agreement.together_or_alone(here(device))
    yield from one_row_at_a_time(device)


def attention(device: Device, folder: Path) -> Iterator[Figure]:
    """The variable-length attention against sdpa."""
    from benchmarks.gpu.cuda_path import attention_against_sdpa

    yield from attention_against_sdpa(device)


def four_bits(device: Device, folder: Path) -> Iterator[Figure]:
    """NF4 against bfloat16."""
    yield from agreement.four_bits(here(device))


def out_of_memory(device: Device, folder: Path) -> Iterator[Figure]:
    """A step that does not fit at first."""
    from benchmarks.gpu.cuda_path import out_of_memory

    yield from out_of_memory(device)


def resume(device: Device, folder: Path) -> Iterator[Figure]:
    """A state handed on, and the command line's checkpoints."""
    yield from agreement.resumed(here(device))
    yield from command_line(here(device))


def answers(device: Device, folder: Path) -> Iterator[Figure]:
    """Greedy answers on the card and on the CPU."""
    yield from agreement.answers(here(device), CPU)


def heads(device: Device, folder: Path) -> Iterator[Figure]:
    """The loss head and others'."""
    from benchmarks.gpu.heads import loss_heads

    yield from loss_heads(device)


def r4(device: Device, folder: Path) -> Iterator[Figure]:
    """Reference run R4's job."""
    from benchmarks.gpu.r4 import as_written_and_preset

    yield from as_written_and_preset(device, folder)


PARTS = (
    Part(name="environment", work=partial(environment, PACKAGES, "cuda"), seconds=40),
    Part(name="curves", work=curves, seconds=60),
    Part(name="packing", work=packing, seconds=60),
    Part(name="attention", work=attention, seconds=60),
    Part(name="4 bits", work=four_bits, seconds=60, needs=("bitsandbytes",)),
    Part(name="out of memory", work=out_of_memory, seconds=60, card=True),
    Part(name="resume", work=resume, seconds=100),
    Part(name="answers", work=answers, seconds=40),
    Part(name="heads", work=heads, seconds=60),
    Part(
        name="roofline",
        work=partial(speed.rooflines, models=("Qwen3-0.6B", "Qwen3-1.7B")),
        seconds=100,
    ),
    Part(name="R4", work=r4, seconds=80, needs=("bitsandbytes",)),
    Part(name="peers", work=partial(speed.peers, pairs=PAIRS, steps=30), seconds=200),
    Part(
        name="roofline 8B",
        work=partial(speed.rooflines, models=("Qwen3-8B",)),
        seconds=150,
        card=True,
    ),
    Part(name="memory", work=partial(speed.foretold_memory, backend="cuda"), seconds=240),
)

if __name__ == "__main__":
    main(PARTS, module="benchmarks.gpu", name="gpu", about=__doc__, budget=BUDGET)
