"""What can go wrong, as a family tree.

    QwenLocalError            exit code 1: the run failed
    ├── DiskFullError             there is no room for what is to be written
    ├── CheckpointError           nothing that a run could go on from
    ├── DiedError                 the training process died (training/restart.py)
    ├── RunBusyError          exit code 3: another process has the run folder
    ├── DivergedError         exit code 4: loss or gradient is not finite (training/diverged.py)
    ├── OutOfMemoryError      exit code 5: memory does not hold a single row
    └── InputError            exit code 2: something the user wrote cannot be used as written
        ├── JobError              the job: a key, a value, a flag, the output folder
        ├── DatasetError          a data file or a row of it
        ├── ModelError            a model or an adapter that we will not or cannot load
        └── BackendError          an engine that was asked for and cannot run here

An `InputError` holds every fault of one input, so that a user mends a file once and not once per
fault. The command line prints our own errors as one message; a bug keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

FAULTS_SHOWN = 20
"""Faults printed in one message; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to mend: where it stands, what was found there, and what to do about it."""

    where: str
    """`train.jsonl:17: messages[2].role`, `job.yaml:3: train.learning_rate`, `--model`, ..."""
    problem: str
    """What was expected and what was found."""
    hint: str | None = None
    """The mend, where one is known."""
    ends: bool = False
    """Whether it says that no more were looked for: the last of them, and always shown."""

    def __str__(self) -> str:
        said = f"{self.where}: {self.problem}"
        return said if self.hint is None else f"{said}\n\nhint: {self.hint}"


class QwenLocalError(Exception):
    """The run failed for a reason that we can explain."""

    exit_code = 1


class DiskFullError(QwenLocalError):
    """There is no room for what is to be written."""

    def __init__(self, path: Path, needed: int, free: int) -> None:
        super().__init__(path, needed, free)
        self.path, self.needed, self.free = path, needed, free

    def __str__(self) -> str:
        return (
            f"{self.path}: no room on the disk: {self.needed:,} bytes are needed, "
            f"{self.free:,} are free\n\nhint: make room; resume a run with --resume"
        )


class CheckpointError(QwenLocalError):
    """There is nothing that a run could go on from."""


class RunBusyError(QwenLocalError):
    """Another process has the run folder."""

    exit_code = 3


class OutOfMemoryError(QwenLocalError):
    """Memory does not hold a single row."""

    exit_code = 5


class InputError(QwenLocalError, ValueError):
    """Something the user wrote cannot be used as written."""

    exit_code = 2

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__(self.faults)  # the whole argument, so that the error pickles

    @classmethod
    def at(cls, where: str, problem: str, hint: str | None = None) -> Self:
        """An error with a single fault, of the class that it is called on."""
        return cls([Fault(where, problem, hint)])

    def __str__(self) -> str:
        shown = [str(fault) for fault in self.faults[:FAULTS_SHOWN]]
        if len(self.faults) > FAULTS_SHOWN:
            shown.append(f"... and {len(self.faults) - FAULTS_SHOWN:,} more")
            shown += [str(fault) for fault in self.faults[-1:] if fault.ends]
        return "\n\n".join(shown)


class JobError(InputError):
    """A job key, a flag or the output folder cannot be used as written."""


class DatasetError(InputError):
    """A data file or a row of it cannot be used as written."""


class ModelError(InputError):
    """A model or adapter that we will not or cannot load."""


class BackendError(InputError):
    """An engine that was asked for cannot run on this machine."""
