"""Estimates of memory, and preferences of speed, of an engine that is not opened.

`plan`, `fit` and the hints ask these from shapes alone. The formulas are the engines' own, in
`mlx/cost.py` and `cuda/cost.py`; here is the choice between them. No framework is imported.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from qwen_local.backends.base import Setup
from qwen_local.backends.cuda.cost import TorchCost
from qwen_local.backends.machine import Capability, Device, Engine
from qwen_local.backends.memory import Memory, Workload
from qwen_local.backends.mlx.cost import MlxCost


class Cost(Protocol):
    """Estimates and preferences of one engine. Both engines' modules `cost` are one."""

    def estimate(self, setup: Setup, workload: Workload) -> Memory:
        """Estimate the memory of a run."""
        ...

    def library_bytes(self, device: Device, *, resident: int, imported: Collection[str]) -> int:
        """Estimate `Workload.libraries`.

        Args:
            device: where the engine computes.
            resident: bytes of this process, which has imported the framework and read the data.
            imported: names of the modules that this process has imported.
        """
        ...

    def favorite_tokens(self, device: Device) -> int:
        """Return the positions of one forward pass beyond which nothing becomes faster."""
        ...

    def compiles(self, device: Device) -> bool:
        """Return True if the engine compiles its step for every shape, so that few pay off."""
        ...

    def can_record(self, setup: Setup, capability: Capability | None) -> bool:
        """Return True if passes can be recorded and launched as a whole (`Setup.cuda_graphs`).

        Args:
            setup: of the engine.
            capability: of the NVIDIA card; None without one.
        """
        ...

    def launch_bound(self, setup: Setup, workload: Workload, capability: Capability | None) -> bool:
        """Return True if launching a pass takes longer than computing it.

        Args:
            setup: of the engine, with its memory budget.
            workload: of the run.
            capability: as above.
        """
        ...

    def slow_quantization(self, setup: Setup) -> str:
        """Return a remark in parentheses if the setup's quantization costs speed; else nothing."""
        ...


def cost_of(engine: Engine) -> Cost:
    """Return the cost model of an engine."""
    return MlxCost() if engine == "mlx" else TorchCost()


def estimate_memory(setup: Setup, workload: Workload) -> Memory:
    """Estimate the memory of a run on the workload's engine."""
    return cost_of(workload.engine).estimate(setup, workload)
