"""A run as its directory describes it: `Run.open`. Reads only, and leniently.

A missing or damaged file makes its property None or empty; it never makes reading the others fail.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from qwen_local.adapters.store import MLX_WEIGHTS, PEFT_WEIGHTS
from qwen_local.errors import InputError, JobError
from qwen_local.files import expanded
from qwen_local.job.reader import file_layer
from qwen_local.job.schema import SCHEMA, Job, ModelSpec, read_job
from qwen_local.runs import checkpoints
from qwen_local.runs.eval_rows import EvalRows, read_eval_rows
from qwen_local.runs.events import EndEvent, Event, read_events
from qwen_local.runs.names import ADAPTER, MLX, PEFT, RUNS, RunFiles
from qwen_local.runs.run_data import RunData

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class Run:
    """A run directory. Files are read when they are first used, and once; folders every time."""

    folder: Path

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a run by its folder, its `adapter/`, or one of the two layouts in that.

        Raises:
            JobError: there is no run.
        """
        run = cls.find(path)
        if run is None:
            problem = f"there is no run in {path}"
            raise JobError.at(str(path), problem, "name the folder that holds the run's job.yaml")
        return run

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """As `open`, but None if there is no run."""
        place = Path(os.path.realpath(expanded(path)))
        if place.name in (PEFT, MLX) and place.parent.name == ADAPTER:
            place = place.parent
        if place.name == ADAPTER:
            place = place.parent
        return cls(place) if is_run(place) else None

    @classmethod
    def of_adapter(cls, path: Path) -> Self | None:
        """The run that an adapter folder belongs to, None for an adapter outside of a run."""
        run = cls.find(path)
        return run if run is not None and run.files.adapter.is_dir() else None

    @classmethod
    def latest(cls, root: Path = RUNS, model: str | None = None) -> Self | None:
        """The run in `root` that was written to last, None without one.

        Args:
            root: parent folder of runs of any name.
            model: only runs of this model. Only the last part of its name counts, because the
                model may have moved.
        """
        places = root.iterdir() if root.is_dir() else ()
        runs = [cls(place) for place in places if is_run(place)]
        for run in sorted(runs, key=lambda run: (run.written_at, run.folder.name), reverse=True):
            if model is None or Path(run.model_name).name == Path(model).name:
                return run
        return None

    @property
    def files(self) -> RunFiles:
        """Paths of its files."""
        return RunFiles(self.folder)

    @property
    def written_at(self) -> int:
        """Time when the run started or made its last progress, in nanoseconds."""
        times = [0]
        for file in (self.files.job, self.files.metrics):
            if file.exists():
                times.append(file.stat().st_mtime_ns)
        return max(times)

    @property
    def model_name(self) -> str:
        """Model in job.yaml, even if the rest of that file is not valid."""
        setting = file_layer(self.files.job, SCHEMA).settings.get("model.name")
        return ModelSpec().name if setting is None else str(setting.value)

    def read_job(self) -> Job:
        """Read job.yaml, which has a value for every key.

        Raises:
            JobError: it is missing or not valid.
        """
        return read_job(self.files.job, preset="none").job

    @cached_property
    def job(self) -> Job | None:
        """Resolved job."""
        try:
            return self.read_job()
        except InputError:
            return None

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Content of environment.json."""
        return _json(self.files.environment)

    @cached_property
    def data(self) -> RunData | None:
        """Content of data.json."""
        try:
            return RunData.model_validate(_json(self.files.data))
        except ValidationError:
            return None

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """Events in order."""
        try:
            return tuple(read_events(self.files.metrics))
        except OSError:
            return ()

    def events_of(self, kind: type[E]) -> Iterator[E]:
        """Yield the events of one kind."""
        return (event for event in self.events if isinstance(event, kind))

    @property
    def end(self) -> EndEvent | None:
        """Result, if the last event is the end of the run. A signal may have caused it."""
        last = self.events[-1] if self.events else None
        return last if isinstance(last, EndEvent) else None

    @property
    def finished(self) -> EndEvent | None:
        """Result, if the run ended and there is nothing left to do."""
        end = self.end
        return None if end is None or end.stopped_by_signal else end

    @cached_property
    def eval_rows(self) -> EvalRows | None:
        """Loss of each evaluation row at each evaluation."""
        try:
            return read_eval_rows(self.files.eval_rows)
        except OSError:
            return None

    @property
    def checkpoints(self) -> list[int]:
        """Steps that have a checkpoint, good or damaged, newest first."""
        return checkpoints.steps_in(self.files.checkpoints)

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.files.checkpoints / checkpoints.step_name(step)

    @property
    def best_adapter(self) -> Path | None:
        """Folder of the best adapter, in PEFT's layout if it is there."""
        for folder, weights in ((self.files.peft, PEFT_WEIGHTS), (self.files.mlx, MLX_WEIGHTS)):
            if (folder / weights).is_file():
                return folder
        return None


def is_run(folder: Path) -> bool:
    """True if the folder has a job.yaml."""
    return os.path.isfile(RunFiles(folder).job)  # noqa: PTH113 - Path raises for too long a name


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one if there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
