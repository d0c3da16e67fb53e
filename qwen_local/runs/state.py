"""Training state after an optimizer step, and its representation in a checkpoint.

Files of a checkpoint: the adapter in PEFT's layout (so that the folder works for `--adapter`),
AdamW's two moments under the same names, and progress.json. All of it is independent of the engine:
float32 arrays in PEFT's layout, and numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from inspect import get_annotations
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter

from qwen_local.adapters.lora import Adapter
from qwen_local.adapters.peft_layout import peft_files
from qwen_local.adapters.store import ORIGIN, PEFT_WEIGHTS
from qwen_local.backends.base import AdapterState
from qwen_local.files import array_bytes, arrays_of, json_bytes
from qwen_local.runs.checkpoints import DamagedError

OPTIMIZER, PROGRESS = "optimizer.safetensors", "progress.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """Memory of early stopping; the rule is in `training/stopping.py`."""

    reference: float | None = None
    """Evaluation loss of the last gain; None before the first gain."""
    without_gain: int = 0
    """Number of evaluations since then that counted and were no gain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """Everything the loop needs to continue, except the arrays.

    The step determines the next rows: row order is a function of seed and epoch, dropout one of
    seed and step, and the learning rate one of the step.
    """

    step: int = 0
    """Optimizer steps done."""
    loss_sum: float = 0.0
    """Sum of losses over all supervised tokens of all steps, in nats."""
    supervised_tokens: int = 0
    tokens: int = 0
    """Input positions of all steps, padding not counted."""
    seconds: float = 0.0
    """Time of the optimizer steps."""
    evaluation_seconds: float = 0.0
    first_loss: float = 0.0
    """Mean loss over supervised tokens of the first step, before any update."""
    last_loss: float = 0.0
    """Mean loss of the last step."""
    evaluated_step: int | None = None
    """Step of the last evaluation; None before the first one."""
    first_eval_loss: float | None = None
    """Evaluation loss before the first step."""
    eval_loss: float | None = None
    """Loss of the last evaluation."""
    best_step: int = 0
    """Step with the lowest evaluation loss; 0 before the first evaluation after a step."""
    best_eval_loss: float | None = None
    patience: Patience = field(default_factory=Patience)
    health: Mapping[str, Any] = field(default_factory=dict)
    """Memory of `training/health.py`."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """A run resumes from a checkpoint only if these are equal to its own."""

    job: Mapping[str, Any]
    """Resolved job."""
    rows: str
    """SHA-256 of tokens and targets of the training rows."""
    eval_rows: str | None
    """SHA-256 of those of the evaluation rows."""
    sources: tuple[tuple[str, str | None], ...]
    """(name, SHA-256 of the file or commit on the hub) of training and evaluation data."""
    base: str
    """Fingerprint of the base model's files: see `models/fingerprint.py`."""
    base_commit: str | None
    """Commit of the base model on the hub."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Choices that may change when a run resumes; reused on the same machine if possible."""

    backend: str
    device: str
    dtype: str
    available: int
    """Memory of the device in bytes."""
    micro_batch_tokens: int
    gradient_checkpointing: bool
    cuda_graphs: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Content of a checkpoint."""

    adapter_state: AdapterState
    """Adapter and moments."""
    state: TrainState
    identity: Identity
    execution: Execution


def to_files(checkpoint: Checkpoint, adapter: Adapter) -> dict[str, bytes]:
    """Encode a checkpoint as files, by name.

    Args:
        checkpoint: what to save.
        adapter: `checkpoint.adapter_state.adapter` with the settings needed to apply it.
    """
    arrays = checkpoint.adapter_state
    moments = {
        f"{moment}.{name}": array
        for moment, values in zip(MOMENTS, (arrays.exp_avg, arrays.exp_avg_sq), strict=True)
        for name, array in values.items()
    }
    progress = {
        **checkpoint.state.to_json(),
        "identity": asdict(checkpoint.identity),
        "execution": asdict(checkpoint.execution),
    }
    return {
        **peft_files(adapter),
        ORIGIN: json_bytes(asdict(adapter.origin)),
        OPTIMIZER: array_bytes(moments, made_for="pt"),
        PROGRESS: json_bytes(progress),
    }


def from_files(files: Mapping[str, bytes]) -> Checkpoint:
    """Decode the files of a checkpoint.

    Raises:
        DamagedError: they are not what `to_files` returns; the error names the file.
    """
    name = PROGRESS
    try:
        state, identity, execution = _progress(files[PROGRESS])
        name = PEFT_WEIGHTS
        adapter = arrays_of(files[PEFT_WEIGHTS])
        name = OPTIMIZER
        moments = arrays_of(files[OPTIMIZER])
        first, second = (
            {name: moments[f"{moment}.{name}"] for name in adapter} for moment in MOMENTS
        )
        for arrays in (first, second):
            if any(arrays[name].shape != adapter[name].shape for name in adapter):
                raise ValueError("moments and adapter have different shapes")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(f"{name}: not what this version writes ({error!r})") from error
    for name, arrays in ((PEFT_WEIGHTS, adapter), (OPTIMIZER, moments)):
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise DamagedError(f"{name}: contains numbers that are not finite")
    return Checkpoint(
        adapter_state=AdapterState(adapter, first, second, state.step),
        state=state,
        identity=identity,
        execution=execution,
    )


WITHOUT_GRAPHS: Mapping[str, Any] = {"cuda_graphs": False}
"""Default for checkpoints written before `cuda_graphs` existed."""


def _progress(content: bytes) -> tuple[TrainState, Identity, Execution]:
    fields = json.loads(content)
    identity = _exactly(Identity, fields.pop("identity"))
    execution = _exactly(Execution, WITHOUT_GRAPHS | fields.pop("execution"))
    return _exactly(TrainState, fields), identity, execution


def _exactly(kind: type[T], fields: Any) -> T:
    """Make a dataclass from a JSON object that has exactly its fields, of the right types.

    Raises:
        ValueError: a field is missing, unknown or of another type.
    """
    if not isinstance(fields, dict) or fields.keys() != set(get_annotations(kind)):
        raise ValueError("fields are missing, or unknown")
    text = json.dumps(fields, allow_nan=False)
    return TypeAdapter(kind).validate_json(text, strict=True)
