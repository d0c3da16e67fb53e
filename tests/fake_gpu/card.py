"""The card that computes nothing, as seen from a program that runs on it."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from tests.fake_gpu.build import LIBRARIES, RUNTIME


@dataclass(frozen=True, slots=True)
class Counts:
    """Calls since the last `reset`, in the order of `runtime.c`."""

    launches: int
    """Kernels, those of a captured graph not included."""
    products: int
    """Calls of cuBLAS that launch a kernel, likewise."""
    syncs: int
    copies_in: int
    copies_out: int
    copies_within: int
    fills: int
    allocations: int
    frees: int
    replays: int
    """Launches of a graph."""
    captured: int
    """Kernels and products put into graphs."""
    forbidden: int
    """Syncs and allocations during a capture."""
    used: int
    """Bytes of the card in use."""
    peak: int
    """Most bytes in use since the reset."""

    @property
    def total(self) -> int:
        """Everything that costs a launch on a real card."""
        return self.launches + self.products + self.copies_within + self.fills + self.replays


def counts() -> Counts:
    """Return the counts of this process."""
    numbers = (ctypes.c_long * len(fields(Counts)))()
    ctypes.CDLL(RUNTIME).fake_counts(numbers)
    return Counts(*numbers)


def reset() -> None:
    """Set the counts to zero; the peak to what is in use."""
    ctypes.CDLL(RUNTIME).fake_reset()


def kernels(path: Path) -> Counter[str]:
    """Return the launches of each kernel by its mangled name; `path` is written on the way."""
    ctypes.CDLL(RUNTIME).fake_kernels(str(path).encode())
    found: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        number, _, name = line.partition(" ")
        found[name] += int(number)
    return found


def environment(libraries: Path, *, capability: str, memory: float, **more: str) -> dict[str, str]:
    """Return variables under which a program finds the card.

    Args:
        libraries: made by `build.py`.
        capability: `7.5` (T4), `8.0` (A800), `8.6` (RTX 3090) or `9.0` (H200).
        memory: bytes of the card.
        **more: other variables.
    """
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(str(libraries / name) for name in LIBRARIES),
        "LD_LIBRARY_PATH": str(libraries),
        "PATH": f"{libraries / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FAKE_GPU_CAP": capability,
        "FAKE_GPU_BYTES": str(int(memory)),
        **more,
    }
