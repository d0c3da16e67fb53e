"""The error classes.

    QwenLocalError            exit code 1: the run failed
    ├── DiskFullError             not enough disk space
    ├── CheckpointError           no usable checkpoint
    ├── DiedError                 the training process died (training/restart.py)
    ├── RunBusyError          exit code 3: another process uses the run directory
    ├── DivergedError         exit code 4: a loss or gradient is not finite (training/diverged.py)
    ├── OutOfMemoryError      exit code 5: a single row, or the update, does not fit into memory
    └── InputError            exit code 2: invalid input
        ├── JobError              a job key, value or argument, or the output folder
        ├── DatasetError          a data file or one of its rows
        ├── ModelError            a model or adapter that is invalid or unsupported
        └── BackendError          a requested engine that cannot run here

An `InputError` contains every fault of one input, so that the user can fix all of them at once. The
command line prints these errors as one message; any other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

FAULTS_SHOWN = 20
"""Maximum number of faults in one message; the message counts the others."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One problem of an input: its place, a description and a hint."""

    where: str
    """`train.jsonl:17: messages[2].role`, `job.yaml:3: train.learning_rate`, `adapter runs/x`, ...
    An argument of a command is named as Python names it, and in backticks in the other two fields:
    `cli/flags.py` translates both."""
    problem: str
    """Expected and found value, in lower case."""
    hint: str | None = None
    """How to fix it, if known."""
    ends: bool = False
    """True for the last fault if the search stopped there; it is always shown."""

    def __str__(self) -> str:
        message = f"{self.where}: {self.problem}"
        return message if self.hint is None else f"{message}\n\nhint: {self.hint}"


class QwenLocalError(Exception):
    """An expected failure with a clear message."""

    exit_code = 1


class DiskFullError(QwenLocalError):
    """There is not enough disk space."""

    def __init__(
        self, path: Path, needed: int, free: int, hint: str = "free some space, and try again"
    ) -> None:
        super().__init__(path, needed, free, hint)
        self.path, self.needed, self.free, self.hint = path, needed, free, hint

    def __str__(self) -> str:
        return (
            f"{self.path}: not enough disk space: {self.needed:,} bytes are needed, "
            f"{self.free:,} are free\n\nhint: {self.hint}"
        )


class CheckpointError(QwenLocalError):
    """There is no usable checkpoint."""


class RunBusyError(QwenLocalError):
    """Another process uses the run directory."""

    exit_code = 3


class OutOfMemoryError(QwenLocalError):
    """A single row, or the update itself, does not fit into memory."""

    exit_code = 5


class InputError(QwenLocalError, ValueError):
    """Invalid input, with all of its faults."""

    exit_code = 2
    more: ClassVar[str] = ""
    """Where to see the faults that are not shown."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__(self.faults)  # all arguments, so that the error can be pickled

    @classmethod
    def at(cls, where: str, problem: str, hint: str | None = None) -> Self:
        """Make an error of this class with a single fault."""
        return cls([Fault(where, problem, hint)])

    def __str__(self) -> str:
        shown = [str(fault) for fault in self.faults[:FAULTS_SHOWN]]
        if len(self.faults) > FAULTS_SHOWN:
            shown.append(f"... and {len(self.faults) - FAULTS_SHOWN:,} more{self.more}")
            shown += [str(fault) for fault in self.faults[-1:] if fault.ends]
        return "\n\n".join(shown)


class JobError(InputError):
    """Invalid job key, value, argument or output folder."""


class DatasetError(InputError):
    """Invalid data file or row."""

    more = "; `qwen-local data check` counts them by kind"


class ModelError(InputError):
    """Invalid or unsupported model or adapter."""


class BackendError(InputError):
    """A requested engine that cannot run on this machine."""
