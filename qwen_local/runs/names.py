"""Every file name of a run directory, written once.

The files inside an adapter folder are named in `adapters/store.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

JOB = "job.yaml"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
ADAPTER, PEFT, MLX = "adapter", "peft", "mlx"
RUNS = Path("runs")
"""Default parent folder of runs."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Paths in a run directory. Nothing is checked: a path may not exist."""

    folder: Path

    @property
    def lock(self) -> Path:
        """Locked by the process that works on the run."""
        return self.folder / ".lock"

    @property
    def job(self) -> Path:
        """Resolved job; a folder is a run because it has this file."""
        return self.folder / JOB

    @property
    def environment(self) -> Path:
        """Versions, hardware, engine, device, dtype."""
        return self.folder / "environment.json"

    @property
    def data(self) -> Path:
        """Data sources with hashes and counts."""
        return self.folder / "data.json"

    @property
    def metrics(self) -> Path:
        """Events, one per line."""
        return self.folder / METRICS

    @property
    def eval_rows(self) -> Path:
        """Loss of each evaluation row."""
        return self.folder / "eval_rows.safetensors"

    @property
    def log(self) -> Path:
        """Messages with their times."""
        return self.folder / "run.log"

    @property
    def checkpoints(self) -> Path:
        """Parent folder of all checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def tensorboard(self) -> Path:
        """Event files for TensorBoard."""
        return self.folder / "tensorboard"

    @property
    def adapter(self) -> Path:
        """Best adapter, with one folder per layout."""
        return self.folder / ADAPTER

    @property
    def peft(self) -> Path:
        """Best adapter as PEFT reads it."""
        return self.adapter / PEFT

    @property
    def mlx(self) -> Path:
        """Best adapter as mlx-lm reads it."""
        return self.adapter / MLX
