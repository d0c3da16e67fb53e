"""Which attention kernels PyTorch and the engine choose on this machine."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from benchmarks.agreement import Place, opened
from benchmarks.environment import environment
from benchmarks.parts import Device, Figure
from qwen_local.backends.cuda.attention import flash_kernel

CASES = {"a row of 300": (300, 300), "one position after 299": (1, 300)}
"""(queries, keys), as in training and in an answer."""


def environment_with_kernels(
    packages: tuple[str, ...], device: Device, folder: Path
) -> Iterator[Figure]:
    """Yield the machine, then what is chosen before and after an engine is opened."""
    for figure in environment(packages, "cuda", device, folder):
        yield figure
        if "impossible_because" in figure:
            return
    choices = {"PyTorch's own": chosen(device)}
    backend = opened(Place(engine="cuda", device=device))
    choices["with an engine open"] = chosen(device)
    del backend
    cudnn: Any = torch.backends.cudnn
    yield {
        "figure": "scaled_dot_product_attention in 16 bits",
        "chosen": choices,
        "cudnn": cudnn.version(),
    }
    yield {"figure": "the kernel for packed rows", "module": module_of_the_kernel()}


def chosen(device: Device) -> dict[str, str]:
    """Return the backend of `scaled_dot_product_attention` for 16 heads of 128, by case."""
    place = torch.device("cuda" if device == "gpu" else "cpu")
    found = {}
    for name, (queries, keys) in CASES.items():
        q, k = (
            torch.zeros(1, 16, n, 128, dtype=torch.bfloat16, device=place) for n in (queries, keys)
        )
        try:
            number = torch._fused_sdp_choice(q, k, k, None, 0.0, queries > 1)
            found[name] = SDPBackend(number).name
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            found[name] = f"unknown: {error}"[:200]  # the function is PyTorch's own affair
    return found


def module_of_the_kernel() -> str | None:
    """Return the module of the function that `flash_kernel` calls."""
    if (kernel := flash_kernel()) is None:
        return None
    varlen = inspect.getclosurevars(kernel).nonlocals.get("varlen", kernel)
    return str(varlen.__module__)
