"""Machines that `plan --for` knows, described as `probe` would describe them."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_local.backends.machine import Capability, Engine, Machine
from qwen_local.errors import BackendError, Fault

GIB = 1 << 30


def _mac(chip: str, gibibytes: int) -> Machine:
    """Describe a Mac with Apple silicon.

    Metal's `recommendedMaxWorkingSetSize` is two thirds of the memory up to 32 GB and three
    quarters above (17.18 GB of an M4 Pro with 24 GiB, 38.65 GB with 48).
    """
    memory = gibibytes * GIB
    return Machine(
        here=False,
        system="Darwin",
        processor="arm64",
        cpu=f"Apple {chip}",
        packages={"mlx": "", "mlx-lm": ""},
        mlx="",
        metal=True,
        torch=None,
        torch_cuda=None,
        cuda=False,
        bfloat16=True,
        nvidia=False,
        driver=None,
        memory_bytes=memory,
        gpu=f"Apple {chip}",
        gpu_bytes=memory * 2 // 3 if gibibytes <= 32 else memory * 3 // 4,
    )


def _card(name: str, capability: Capability, memory_bytes: int) -> Machine:
    """Describe a Linux machine with an NVIDIA card. The driver reserves a little of its memory."""
    return Machine(
        here=False,
        system="Linux",
        processor="x86_64",
        packages={"torch": "", "peft": "", "bitsandbytes": ""},
        mlx=None,
        metal=False,
        torch="",
        torch_cuda="",
        cuda=True,
        bfloat16=capability >= (8, 0),
        nvidia=True,
        driver="",
        memory_bytes=4 * memory_bytes,
        gpu=name,
        gpu_capability=capability,
        gpu_bytes=memory_bytes,
    )


NAMED: Mapping[str, Machine] = {
    "m4-pro-24": _mac("M4 Pro", 24),
    "m4-pro-48": _mac("M4 Pro", 48),
    "rtx-3090": _card("NVIDIA GeForce RTX 3090", (8, 6), round(23.6 * GIB)),
    "a800": _card("NVIDIA A800 80GB", (8, 0), round(79.2 * GIB)),
}


def engine_there(name: str) -> Engine:
    """Return the engine of a named machine."""
    return "mlx" if NAMED[name].metal else "cuda"


def named_machine(name: str, *, backend: str, device: str) -> Machine:
    """Return a machine by its name, if backend and device agree with it.

    Args:
        name: out of `NAMED`.
        backend: `auto`, `mlx` or `cuda`.
        device: `auto`, `gpu` or `cpu`.

    Raises:
        BackendError: it has no such engine, or was asked for its CPU.
    """
    engine = engine_there(name)
    given_there = (("backend", backend, engine), ("device", device, "gpu"))
    faults = [
        Fault(f"{key} {given}", f"{name} is planned for `{key}={there}`", f"leave `{key}` out")
        for key, given, there in given_there
        if given not in ("auto", there)
    ]
    if faults:
        raise BackendError(faults)
    return NAMED[name]
