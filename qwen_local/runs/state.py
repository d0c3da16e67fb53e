"""Where a run stands after an optimizer step, and how a checkpoint says it.

A checkpoint's files: the adapter as PEFT has it (so the folder does for `--adapter`), AdamW's two
moments under the same names, and progress.json. All of it is engine-neutral: float32 arrays in
PEFT's layout, and numbers.
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
from qwen_local.training.stopping import Patience

OPTIMIZER, PROGRESS = "optimizer.safetensors", "progress.json"
T = TypeVar("T")
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """All that the loop must know to go on, but the arrays.

    The next row follows from the step alone: the order of rows is a function of seed and epoch,
    dropout one of seed and step, and the learning rate one of the step.
    """

    step: int = 0
    """Optimizer steps done."""
    loss_sum: float = 0.0
    """Over every supervised token that was trained."""
    supervised_tokens: int = 0
    tokens: int = 0
    """Input positions of all steps, padding not counted."""
    seconds: float = 0.0
    """Of the optimizer steps."""
    evaluation_seconds: float = 0.0
    first_loss: float = 0.0
    """Mean loss over the supervised tokens of the first step, before any update."""
    last_loss: float = 0.0
    """The same of the last step."""
    evaluated_step: int | None = None
    """Of the last evaluation; None where there was none."""
    first_eval_loss: float | None = None
    """Before the first step."""
    eval_loss: float | None = None
    """Of the last evaluation."""
    best_step: int = 0
    """With the lowest evaluation loss after a step; 0 where there is none yet."""
    best_eval_loss: float | None = None
    patience: Patience = field(default_factory=Patience)
    health: Mapping[str, Any] = field(default_factory=dict)
    """What `training/health.py` remembers."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a run is a run of. It goes on only where this is the same."""

    job: Mapping[str, Any]
    """The resolved job."""
    rows: str
    """SHA-256 of the training rows' tokens and targets."""
    eval_rows: str | None
    """The same of the evaluation rows."""
    sources: tuple[tuple[str, str | None], ...]
    """(name, SHA-256 of the file or commit on the hub) of the training and evaluation data."""
    base: str
    """Fingerprint of the base model's files: see `models/fingerprint.py`."""
    base_commit: str | None
    """On the hub."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How it was computed: free to change, and taken over where machine and wish are the same."""

    backend: str
    device: str
    dtype: str
    available: int
    """Bytes of the device."""
    micro_batch_tokens: int
    gradient_checkpointing: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """The content of a checkpoint."""

    state: AdapterState
    standing: Standing
    identity: Identity
    execution: Execution


def _exactly(kind: type[T], fields: Any) -> T:
    """A dataclass from JSON's types: every field there, of its type, and no other.

    Raises:
        ValueError: it is not so.
    """
    if not isinstance(fields, dict) or fields.keys() != set(get_annotations(kind)):
        raise ValueError("fields are missing, or unknown")
    text = json.dumps(fields, allow_nan=False)
    return TypeAdapter(kind).validate_json(text, strict=True)


def to_files(saved: Saved, adapter: Adapter) -> dict[str, bytes]:
    """The files of a checkpoint by name.

    Args:
        saved: what to keep.
        adapter: `saved.state.adapter` with what is needed to apply it.
    """
    state = saved.state
    moments = {
        f"{moment}.{name}": array
        for moment, arrays in zip(MOMENTS, (state.exp_avg, state.exp_avg_sq), strict=True)
        for name, array in arrays.items()
    }
    progress = {
        **saved.standing.to_json(),
        "identity": asdict(saved.identity),
        "execution": asdict(saved.execution),
    }
    return {
        **peft_files(adapter),
        ORIGIN: json_bytes(asdict(adapter.origin)),
        OPTIMIZER: array_bytes(moments, made_for="pt"),
        PROGRESS: json_bytes(progress),
    }


def from_files(files: Mapping[str, bytes]) -> Saved:
    """The content of a checkpoint's files.

    Raises:
        DamagedError: they are not what `to_files` gives; it names the file.
    """
    name = PROGRESS
    try:
        fields = json.loads(files[PROGRESS])
        identity = _exactly(Identity, fields.pop("identity"))
        execution = _exactly(Execution, fields.pop("execution"))
        standing = _exactly(Standing, fields)
        name = PEFT_WEIGHTS
        adapter = arrays_of(files[PEFT_WEIGHTS])
        name = OPTIMIZER
        moments = arrays_of(files[OPTIMIZER])
        first, second = (
            {name: moments[f"{moment}.{name}"] for name in adapter} for moment in MOMENTS
        )
        for arrays in (first, second):
            if any(arrays[name].shape != adapter[name].shape for name in adapter):
                raise ValueError("moments of other shapes than the adapter's")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(f"{name}: not what this version writes ({error!r})") from error
    for name, arrays in ((PEFT_WEIGHTS, adapter), (OPTIMIZER, moments)):
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise DamagedError(f"{name}: holds numbers that are not finite")
    return Saved(
        state=AdapterState(adapter, first, second, standing.step),
        standing=standing,
        identity=identity,
        execution=execution,
    )
