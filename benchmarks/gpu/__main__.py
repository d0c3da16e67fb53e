"""The CUDA path of this project on your card: is it right, how fast, how large.

    benchmarks/gpu/run
    benchmarks/gpu/run --only attention --only "out of memory"
    benchmarks/gpu/run --device cpu --output /tmp/rehearsal
    WHEELS=folder benchmarks/gpu/run            # installs the wheels in it first, without a network

Everything in under nine minutes, with models made on the spot: nothing is downloaded. The most
valuable parts come first, and those that do not fit into the time are named. It writes one file,
benchmarks/results/gpu-<card>.json, after every part: send it in (docs/owners.md says how). Parts
whose packages are not installed are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import agreement, answer_speed, speed
from benchmarks.agreement import Place
from benchmarks.command_line import command_line
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
WORKLOADS = ("code-alpaca", "movielens")
"""Of `benchmarks.peers`."""


def machine(device: Device, folder: Path) -> Iterator[Figure]:
    """The machine, and the kernels that are chosen on it."""
    from benchmarks.gpu.kernels import environment_with_kernels

    yield from environment_with_kernels(PACKAGES, device, folder)


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


def answer_timing(device: Device, folder: Path) -> Iterator[Figure]:
    """Greedy answers in bfloat16, timed."""
    yield from answer_speed.answer_speed(here(device), folder)


def heads(device: Device, folder: Path) -> Iterator[Figure]:
    """The loss head and others'."""
    from benchmarks.gpu.heads import loss_heads

    yield from loss_heads(device)


def r4(device: Device, folder: Path) -> Iterator[Figure]:
    """Reference run R4's job."""
    from benchmarks.gpu.r4 import as_written_and_preset

    yield from as_written_and_preset(device, folder)


def step(device: Device, folder: Path) -> Iterator[Figure]:
    """Where the time of a step goes."""
    from benchmarks.gpu.step import step_costs

    yield from step_costs(device, folder)


def peers(*models: str) -> Callable[[Device, Path], Iterator[Figure]]:
    """Return what compares some models with other tools in one round."""
    pairs = tuple(f"{model}/{workload}" for model in models for workload in WORKLOADS)
    return partial(speed.peers, pairs=pairs, steps=30, rounds=1)


def roofline(*models: str) -> Callable[[Device, Path], Iterator[Figure]]:
    """Return what measures some models against the rate of bare products."""
    return partial(speed.rooflines, models=models)


BITSANDBYTES = ("bitsandbytes",)
PARTS = (
    # These fit into `BUDGET` together.
    Part(name="environment", work=machine, seconds=40),
    Part(name="attention", work=attention, seconds=25),
    Part(name="curves", work=curves, seconds=25),
    Part(name="packing", work=packing, seconds=30),
    Part(name="4 bits", work=four_bits, seconds=25, needs=BITSANDBYTES),
    Part(name="out of memory", work=out_of_memory, seconds=20, card=True),
    Part(name="step", work=step, seconds=60),
    Part(name="roofline 8B", work=roofline("Qwen3-8B"), seconds=95, card=True),
    Part(name="peers", work=peers("Qwen3-0.6B"), seconds=80),
    Part(name="R4", work=r4, seconds=45, needs=BITSANDBYTES),
    Part(name="resume", work=resume, seconds=45),
    Part(name="heads", work=heads, seconds=30),
    # These are for a second call, or for more time.
    Part(name="memory", work=partial(speed.foretold_memory, backend="cuda"), seconds=120),
    Part(name="answer speed", work=answer_timing, seconds=50),
    Part(name="peers 1.7B", work=peers("Qwen3-1.7B"), seconds=90),
    Part(name="answers", work=answers, seconds=40),
    Part(name="roofline", work=roofline("Qwen3-0.6B", "Qwen3-1.7B"), seconds=100),
)

if __name__ == "__main__":
    main(PARTS, module="benchmarks.gpu", name="gpu", about=__doc__, budget=BUDGET)
