"""Work of a device by the clock, one piece after the other."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from benchmarks.parts import Device


def timed(work: Callable[[], object], device: Device) -> float:
    """Seconds that work takes, that of a card's included."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: Device) -> None:
    """Wait for a card."""
    if device == "gpu":
        import torch

        torch.cuda.synchronize()


def release(device: Device) -> None:
    """Give back what an engine that is no longer used held."""
    gc.collect()
    if device == "gpu":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
