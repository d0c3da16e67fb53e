"""Typed events of a run and `metrics.jsonl`, which has one of them per line.

The file is appended to and is the only source for reports. A line is a JSON object: `event` names
its kind, the other keys are the fields of the class below, in their order. Readers are lenient:

- unknown kinds of events and unknown keys are ignored;
- a field that an earlier version did not write is NaN (a number) or None where it may be;
- a damaged line, or one that lacks anything else, is skipped, wherever it is.

A run that resumes does not skip: it cuts the file at the first damaged line (`cut_events`), because
it writes the steps after its checkpoint again.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeAlias, TypeVar, cast, overload

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from qwen_local.files import room_for

Number: TypeAlias = Annotated[float, BeforeValidator(lambda v: math.nan if v is None else v)]
"""A float whose value may not be finite. JSON has no NaN: it is null in the file."""
UNKNOWN = math.nan
"""Value of a `Number` that an earlier version did not record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line of metrics.jsonl."""

    KIND: ClassVar[str]
    """Value of the key `event`."""

    def to_json(self) -> dict[str, Any]:
        """Its fields in JSON's types: None stands for a number that is not finite."""
        return {item.name: _finite(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Event from a JSON object; unknown keys are ignored.

        Raises:
            ValueError: a field is missing or has another type.
        """
        return cast(Self, _validator(cls.KIND).validate_python(dict(content)))


@dataclass(frozen=True, kw_only=True, slots=True)
class StartEvent(Event):
    """A new run starts. Fields after `trainable_parameters` are None in runs of 0.1.0."""

    KIND: ClassVar[str] = "start"
    died_of: str | None = None
    """Cause of death of the process before this one, under `train.restarts`: a signal, or
    `internal error`."""
    backend: str
    device: str
    dtype: str
    micro_batch_tokens: int
    steps: int
    """Optimizer steps of the whole run."""
    rows: int
    """Training rows."""
    trainable_parameters: int
    total_parameters: int | None = None
    vocabulary: int | None = None
    """Number of tokens that the model distinguishes."""
    tokenizer_sha256: str | None = None
    """Hash of tokenizer, chat template and its variables."""
    template_sha256: str | None = None
    """Hash of the chat template."""
    eval_rows: int | None = None
    """Number of evaluation rows."""
    eval_rows_sha256: str | None = None
    """Hash of their tokens and targets; None without evaluation rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumeEvent(Event):
    """A run continues. Fields after `lost` are None in runs of 0.1.0; see `StartEvent`."""

    KIND: ClassVar[str] = "resume"
    step: int
    """Optimizer steps done: those of the checkpoint."""
    died_of: str | None = None
    backend: str
    device: str
    dtype: str
    micro_batch_tokens: int
    steps: int
    changed: Mapping[str, Any] = field(default_factory=dict)
    """(before, now) by job key."""
    lost: int = 0
    """Steps to repeat because newer checkpoints are damaged."""
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    vocabulary: int | None = None
    tokenizer_sha256: str | None = None
    template_sha256: str | None = None
    eval_rows: int | None = None
    eval_rows_sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastEvent(Event):
    """Estimated time and memory, after the warm-up."""

    KIND: ClassVar[str] = "forecast"
    step: int
    training_seconds: Number
    evaluation_seconds: Number
    memory_bytes: int
    """Planned peak."""
    peak_memory_bytes: int
    """Measured peak of the warm-up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainEvent(Event):
    """An optimizer step."""

    KIND: ClassVar[str] = "train"
    step: int
    """Number of the step; 1 is the first."""
    epoch: Number = UNKNOWN
    loss: Number
    """Mean over supervised tokens in nats, before the update."""
    learning_rate: Number = UNKNOWN
    """Learning rate that the optimizer applied."""
    grad_norm: Number = UNKNOWN
    """Before clipping."""
    tokens: int | None = None
    """Input positions, padding not counted."""
    supervised_tokens: int | None = None
    computed_tokens: int | None = None
    """Input positions with padding."""
    seconds: Number = UNKNOWN
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalEvent(Event):
    """An evaluation."""

    KIND: ClassVar[str] = "eval"
    step: int
    """Optimizer steps done before it."""
    loss: Number
    """Mean over supervised tokens in nats."""
    perplexity: Number = UNKNOWN
    supervised_tokens: int | None = None
    seconds: Number = UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEvent(Event):
    """Memory ran out, and the step was repeated with a smaller budget."""

    KIND: ClassVar[str] = "memory"
    step: int
    micro_batch_tokens: int
    """New budget, in positions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WarningEvent(Event):
    """Something looks wrong; the run continues. `numbers` are keys of their own in the file."""

    KIND: ClassVar[str] = "warning"
    step: int
    kind: str
    message: str
    """One line with the figures and the fix."""
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    """The same figures for a program."""

    def to_json(self) -> dict[str, Any]:
        """Its fields, with `numbers` beside the others."""
        own = {"step": self.step, "kind": self.kind, "message": self.message}
        numbers = {name: _finite(value) for name, value in self.numbers.items()}
        return {**own, **numbers}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Event from a JSON object, where every other number is one of `numbers`."""
        own = ("event", "step", "kind", "message")
        numbers = {
            name: value
            for name, value in content.items()
            if name not in own and (value is None or isinstance(value, int | float))
        }
        given = {name: content[name] for name in own[1:] if name in content}
        return cast(Self, _validator(cls.KIND).validate_python({**given, "numbers": numbers}))


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointEvent(Event):
    """A checkpoint is on the disk."""

    KIND: ClassVar[str] = "checkpoint"
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterEvent(Event):
    """The adapter of this step was saved as the best one."""

    KIND: ClassVar[str] = "adapter"
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedEvent(Event):
    """An error ended the run."""

    KIND: ClassVar[str] = "failed"
    error: str
    """First line of the message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndEvent(Event):
    """The run ended. These are the figures that `train --json` prints."""

    KIND: ClassVar[str] = "end"
    run: str
    adapter: str
    backend: str
    device: str
    steps: int
    epochs: float
    train_loss: Number
    """Mean over all supervised tokens of all steps."""
    first_eval_loss: float | None
    """Before the first step."""
    eval_loss: float | None
    """Of the last evaluation."""
    best_step: int
    best_eval_loss: float | None
    trainable_parameters: int
    total_parameters: int
    supervised_tokens: int
    tokens_per_second: float
    """Over all steps, of all processes."""
    peak_memory_bytes: int
    stopped_because: str
    restarts: int
    """Number of times that `train.restarts` restarted the training process."""

    @property
    def stopped_by_signal(self) -> bool:
        """True if a signal ended the run, so that there are steps left."""
        return self.stopped_because in signal.Signals.__members__


EVENTS: Mapping[str, type[Event]] = {
    kind.KIND: kind
    for kind in (
        StartEvent,
        ResumeEvent,
        ForecastEvent,
        TrainEvent,
        EvalEvent,
        MemoryEvent,
        WarningEvent,
        CheckpointEvent,
        AdapterEvent,
        FailedEvent,
        EndEvent,
    )
}
E = TypeVar("E", bound=Event)


def numbers_of(event: Event) -> dict[str, float]:
    """Numeric fields of an event by name; numbers that are not finite stay as they are."""
    values = {item.name: getattr(event, item.name) for item in fields(event)}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


class EventWriter:
    """Appends events to a file, each as one line; closes it at the end of a `with`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def write(self, event: Event) -> None:
        """Append one event.

        Raises:
            DiskFullError: the disk is full; nothing of the line is in the file.
            OSError: another failure to write; likewise.
        """
        content = {"event": event.KIND, **event.to_json()}
        line = (json.dumps(content, allow_nan=False) + "\n").encode()
        before = self._file.seek(0, os.SEEK_END)
        try:
            with room_for(self._path, len(line)):
                rest = line
                while rest:
                    rest = rest[self._file.write(rest) :]
        except BaseException:
            # Half a line would make the next event part of a damaged one.
            with suppress(OSError):
                self._file.truncate(before)
            raise

    def sync(self) -> None:
        """Flush to the disk: a checkpoint must not be newer than its events."""
        os.fsync(self._file.fileno())


@overload
def read_events(path: Path) -> Iterator[Event]: ...
@overload
def read_events(path: Path, kind: type[E]) -> Iterator[E]: ...
def read_events(path: Path, kind: type[Event] | None = None) -> Iterator[Event]:
    """Yield the events of a file in order, or those of one kind. See the module for leniency.

    Raises:
        OSError: the file cannot be read.
    """
    for _, content in _lines(path):
        if content is None or (kind is not None and content["event"] != kind.KIND):
            continue
        known = EVENTS.get(content["event"])
        if known is not None:
            with suppress(ValidationError):
                yield known.from_json(content)


def cut_events(path: Path, step: int, evaluated: int | None) -> int:
    """Cut off what a resumed run writes again, and everything after a damaged line.

    Args:
        path: the file.
        step: optimizer steps done; -1 removes all events.
        evaluated: step of the last evaluation to keep, None for none.

    Returns:
        Last step with a `train` event, which is less than `step` if a line is damaged.
    """
    end = trained = 0
    for place, content in _lines(path):
        if content is None:
            break
        done = content.get("steps" if content["event"] == EndEvent.KIND else "step", 0)
        repeated = content["event"] == EvalEvent.KIND and (evaluated is None or done > evaluated)
        if done > step or repeated:
            break
        end = place
        if content["event"] == TrainEvent.KIND:
            trained = done
    with path.open("r+b") as file:
        file.truncate(end)
        os.fsync(file.fileno())
    return trained


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield (end of the line in bytes, its object or None if the line is damaged)."""
    place = 0
    with path.open("rb") as lines:
        for line in lines:
            place += len(line)
            yield place, _object(line)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    # Without its newline even a line that parses may be the start of a longer number.
    if not line.endswith(b"\n") or not isinstance(content, dict):
        return None
    steps = (content.get(name, 0) for name in ("step", "steps"))
    whole = isinstance(content.get("event"), str) and all(isinstance(n, int) for n in steps)
    return content if whole else None


@cache
def _validator(kind: str) -> TypeAdapter[Event]:
    return TypeAdapter(EVENTS[kind])


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
