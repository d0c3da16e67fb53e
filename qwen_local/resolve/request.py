"""A command's request: which model, which adapter, where it runs, and how it is held."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen_local.backends.machine import DType
from qwen_local.job.schema import Draft, Quantization

AdapterPolicy = Literal["warn", "refuse"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The input of `resolve`."""

    model: str | None = None
    """Hub id, folder or the embedded model; None takes the base model that the adapter names."""
    revision: str | None = None
    """Commit, branch or tag of a hub model; None takes the adapter's commit, else the newest."""
    commit: str | None = None
    """Commit of a hub model that nothing else pins to a revision: a resumed run keeps its own."""
    adapter: Path | None = None
    """A run, or the folder of an adapter; None for the base model alone."""
    backend: str = "auto"
    """`auto`, `mlx` or `cuda`."""
    device: str = "auto"
    """`auto`, `gpu` or `cpu`."""
    dtype: DType | Literal["auto"] = "auto"
    """Number type that the frozen model computes in."""
    quantization: Quantization | None = None
    """Format of the blocks' linear layers; None takes the one that the adapter was trained on."""
    other_engine: AdapterPolicy = "warn"
    """Treatment of an adapter that was trained on another engine's quantized weights: no other
    engine has exactly these weights. `warn` computes with this engine's own, `refuse` raises."""
    preferred: str | None = None
    """Engine to take where `backend` leaves it open and it can run here: the one a run started
    on."""
    draft: Draft | None = None
    """The job that the request comes from; its preset is applied."""

    @classmethod
    def of_job(
        cls,
        draft: Draft,
        *,
        backend: str,
        device: str,
        commit: str | None = None,
        preferred: str | None = None,
    ) -> Request:
        """Request what a job trains.

        Args:
            draft: the job.
            backend: `auto`, `mlx` or `cuda`.
            device: `auto`, `gpu` or `cpu`.
            commit: see the field.
            preferred: see the field.
        """
        model = draft.model
        return cls(
            model=model.name,
            revision=model.revision,
            commit=commit,
            backend=backend,
            device=device,
            dtype=model.dtype,
            quantization=model.quantization,
            preferred=preferred,
            draft=draft,
        )

    @property
    def quantization_key(self) -> str:
        """The job key or argument that sets the quantization, as messages name it."""
        return "quantization" if self.draft is None else "model.quantization"
