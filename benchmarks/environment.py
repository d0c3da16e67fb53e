"""What a machine is and has, in general words: the first part of a benchmark for its owner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.parts import Device, Figure
from benchmarks.peers.work import versions
from benchmarks.result import machine


def environment(packages: Sequence[str], device: Device, folder: Path) -> Iterator[Figure]:
    """Card, driver, versions; `card` is what the result's file is named after.

    Args:
        packages: whose versions are told, None for what is not installed.
        device: `cpu` names no card.
        folder: not needed.
    """
    from qwen_local.backends.probe import probe

    here = probe(thorough=True)
    yield {
        "card": (here.gpu or "no card") if device == "gpu" else "cpu",
        "card_bytes": here.gpu_bytes,
        "capability": here.gpu_capability,
        "driver": here.driver,
        "cuda": here.torch_cuda,
        "macos": here.macos,
        "faults": [f for f in (here.torch_fault, here.mlx_fault, here.bitsandbytes_fault) if f],
        **machine(device, packages, here),
        "packages": dict.fromkeys(packages) | versions(packages),
    }
