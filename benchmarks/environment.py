"""What a machine is and has, in general words: the first part of a benchmark for its owner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.parts import Device, Figure, impossible
from benchmarks.peers.work import versions
from benchmarks.result import machine

if TYPE_CHECKING:
    from qwen_local.backends.machine import Engine, Machine


def environment(
    packages: Sequence[str], engine: Engine, device: Device, folder: Path
) -> Iterator[Figure]:
    """Card, driver, versions; `card` is what the result's file is named after.

    Args:
        packages: whose versions are told, None for what is not installed.
        engine: what must be able to use the card.
        device: `cpu` names no card.
        folder: not needed.
    """
    from qwen_local.backends.probe import probe

    here = probe(thorough=True)
    if device == "gpu" and (lack := without_gpu(here, engine)):
        yield impossible(f"{lack}; --device cpu rehearses")
        return
    yield {
        "card": here.gpu if device == "gpu" else "cpu",
        "card_bytes": here.gpu_bytes,
        "capability": here.gpu_capability,
        "driver": here.driver,
        "cuda": here.torch_cuda,
        "macos": here.macos,
        "faults": [f for f in (here.torch_fault, here.mlx_fault, here.bitsandbytes_fault) if f],
        **machine(device, packages, here),
        "packages": dict.fromkeys(packages) | versions(packages),
    }


def without_gpu(here: Machine, engine: Engine) -> str | None:
    """That a machine has no GPU for an engine, where it has none."""
    if here.metal if engine == "mlx" else here.cuda:
        return None
    gpu = "Apple GPU that MLX" if engine == "mlx" else "NVIDIA card that PyTorch"
    return f"no {gpu} can use: qwen-local doctor says why"
