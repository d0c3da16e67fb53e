"""Resuming a run: which run, from which checkpoint, and a check that it is still the same run."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qwen_local.errors import CheckpointError, Fault, JobError
from qwen_local.files import expanded, sync_folder
from qwen_local.job.reader import FILE, show
from qwen_local.job.schema import Draft, Job
from qwen_local.runs import checkpoints
from qwen_local.runs.checkpoints import STEP, Damage, DamagedError, step_name
from qwen_local.runs.events import CheckpointEvent
from qwen_local.runs.names import CHECKPOINTS, RUNS, RunFiles
from qwen_local.runs.run import Run, is_run
from qwen_local.runs.state import Checkpoint, Identity, from_files

log = logging.getLogger("qwen_local")

BY_CONTENT = {"model.name", "model.revision", "data.train", "data.eval"}
"""Keys that name what may be elsewhere on another machine: the content is compared instead."""
FREE = {
    "output",
    "train.epochs",
    "train.steps",
    "train.eval_every",
    "train.save_every",
    "train.keep",
    "train.early_stopping",
    "train.restarts",
    "train.report_to",
    "train.micro_batch_tokens",
    "train.gradient_checkpointing",
    "train.cuda_graphs",
}
"""Keys that may change when a run resumes."""
NUMBER = re.compile("[0-9]{1,9}")
NEW_RUN = "start a new run for another job, without `resume` and with another `output`"


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A run to resume."""

    folder: Path
    step: int | None
    """Step of the requested checkpoint; None for the newest good one."""

    @property
    def path(self) -> Path:
        """Path that `find_run` takes for it."""
        return self.folder if self.step is None else Run(self.folder).checkpoint(self.step)


@dataclass(frozen=True, slots=True)
class Restored:
    """The checkpoint that a run resumes from."""

    checkpoint: Checkpoint
    lost: int
    """Steps to repeat because newer checkpoints are damaged."""
    damages: tuple[Damage, ...]


def find_run(draft: Draft, resume: str, *, any_model: bool = False) -> ResumePoint:
    """Find the run that `resume` names.

    Args:
        draft: of the command.
        resume: "" for the run in the job's output folder, or the latest of this model if the job
            has none; else a run's folder, a checkpoint's, or the name or step of one in that run.
        any_model: take the latest of all runs if the job has no output folder.

    Raises:
        JobError: there is no such run or checkpoint.
    """
    if (found := named(resume)) is not None:
        return _of_this_job(draft, *found)
    given = draft.job.output
    model = None if any_model else draft.job.model.name
    folder = _latest(model) if given is None else expanded(given)
    if resume and not _names_a_step(resume):
        problem = f"{resume} is neither a run nor a checkpoint"
        raise JobError.at("resume", problem, "name a run's folder, or one in its checkpoints/")
    if folder is None:
        problem = f"there is no run{'' if model is None else f' of {model}'} in {RUNS}/"
        raise JobError.at("resume", problem, "pass `output`, or `resume=RUN`")
    if not is_run(folder):
        job = RunFiles(folder).job.name
        problem, hint = f"there is no run in {folder}", "leave out `resume` to start one"
        if Run(folder).checkpoints:
            problem, hint = f"{folder} has checkpoints but no {job}", f"put its {job} back"
        raise JobError.at("resume", problem, hint)
    name = step_name(int(resume)) if NUMBER.fullmatch(resume) else resume
    return ResumePoint(folder, _step(folder, name))


def draft_to_resume(
    job: Path | None, resume: str, read: Callable[[Path | None], Draft]
) -> tuple[Draft, ResumePoint]:
    """Find the run to resume, and read the job that it continues with.

    Args:
        job: the job file of the command; None continues with the run's own.
        resume: see `find_run`.
        read: reads a job file, or the default job, with the command's other options.

    Raises:
        JobError: there is no such run or checkpoint, or the job is invalid.
    """
    if job is None and (job := job_of_run(resume)) is None:
        # `resume` is no path, so the other options name the run: its output folder, or its model.
        given = read(None)
        resume = str(find_run(given, resume, any_model=not given.sets("model.name")).path)
        job = job_of_run(resume)
    draft = read(job)
    return draft, find_run(draft, resume)


def _latest(model: str | None) -> Path | None:
    run = Run.latest(RUNS, model)
    return None if run is None else run.folder


def named(resume: str) -> tuple[Path, str] | None:
    """Split a path into (run, name of a checkpoint or ""); None if it leads to no run."""
    if not resume:
        return None
    place = expanded(resume)
    if is_run(place):
        return place, ""
    whole = place.absolute()
    if STEP.fullmatch(whole.name) and whole.parent.name == CHECKPOINTS:
        folder = whole.parent.parent
        if is_run(folder):
            return folder if place.is_absolute() else Path(os.path.relpath(folder)), whole.name
    return None


def job_of_run(resume: str) -> Path | None:
    """Return job.yaml of the run that `resume` is a path to; None if it is no such path."""
    found = named(resume)
    if found is None:
        return None
    job = RunFiles(found[0]).job
    if job.stat().st_size == 0:  # which would read as a job of defaults
        hint = "put the run's job back, or pass a job file together with `resume`"
        raise JobError.at(str(job), "is empty", hint)
    return job


def peek_checkpoint(point: ResumePoint) -> Checkpoint | None:
    """Read the checkpoint that a resumed run would continue from, and change nothing.

    None if the run ended before its first checkpoint.

    Raises:
        CheckpointError: the requested one, or every one, is damaged.
    """
    found = _read_checkpoint(point)
    return None if found is None else found[1]


def _read_checkpoint(point: ResumePoint) -> tuple[int, Checkpoint, list[Damage]] | None:
    root = RunFiles(point.folder).checkpoints
    ways = "name another with `resume=CHECKPOINT`, or start a new run in another `output`"
    try:
        if point.step is None:
            return checkpoints.newest(root, from_files)
        return point.step, from_files(checkpoints.read(root / step_name(point.step))), []
    except DamagedError as error:
        where, problem = root, "no checkpoint can be loaded"
        if point.step is not None:
            where, problem = root / step_name(point.step), "is damaged"
        raise CheckpointError(f"{where}: {problem}: {error}\n\nhint: {ways}") from None


def load_checkpoint(point: ResumePoint) -> Restored | None:
    """Read the checkpoint to resume from.

    None if the run ended before its first checkpoint.

    Raises:
        CheckpointError: the requested one, or every one, is damaged; or the run had checkpoints,
            and they are gone.
    """
    root = RunFiles(point.folder).checkpoints
    checkpoints.recover(root)
    found = _read_checkpoint(point)
    if found is None:
        _check_had_none(point.folder)
        return None
    step, checkpoint, damages = found
    for damage in damages:
        log.info("warning: %s is damaged: %s", damage.folder, damage.problem)
    lost = checkpoints.steps_in(root)[0] - step if damages else 0
    if damages:
        log.info("the newest good checkpoint is at step %d: %d steps to repeat", step, lost)
    return Restored(checkpoint, lost, tuple(damages))


def _check_had_none(folder: Path) -> None:
    """Refuse to restart a run from its first step if it had got further.

    Raises:
        CheckpointError: it had checkpoints.
    """
    if any(True for _ in Run(folder).events_of(CheckpointEvent)):
        raise CheckpointError(
            f"{folder}: this run had checkpoints, but they are gone\n\n"
            "hint: put them back, or start a new run in another `output`"
        )


def discard_later(point: ResumePoint, restored: Restored) -> None:
    """Remove checkpoints after the one to resume from: the run writes their steps again."""
    root = RunFiles(point.folder).checkpoints
    checkpoints.set_aside(root, restored.damages)
    for step in checkpoints.steps_in(root):
        if step > restored.checkpoint.state.step:
            checkpoints.discard(root, step)
    # Before metrics.jsonl is cut: a checkpoint that a power cut brought back would lack its events.
    sync_folder(root)


def resume_command(folder: Path) -> str:
    """Command that resumes a run."""
    return f"qwen-local train --resume={shlex.quote(str(folder))}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return (before, now) by dotted key for all keys of two resolved jobs that differ."""
    a, b = dict(_flat(before)), dict(_flat(now))
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def as_yaml(value: object) -> str:
    """Format a value of a resolved job as in job.yaml, on one line.

    >>> as_yaml(None), as_yaml(True), as_yaml("auto"), as_yaml(["tensorboard"])
    ('null', 'true', 'auto', '[tensorboard]')
    >>> as_yaml({"patience": 3, "min_delta": 0.0})
    '{patience: 3, min_delta: 0.0}'
    """
    match value:
        case str():
            return value
        case list() | tuple():
            return f"[{', '.join(map(as_yaml, value))}]"
        case Mapping():
            return f"{{{', '.join(f'{key}: {as_yaml(item)}' for key, item in value.items())}}}"
    return show(value)


def check_same(draft: Draft, before: Identity, now: Identity) -> dict[str, tuple[Any, Any]]:
    """Check that a run resumes as the same run, and return the changes: (before, now) by key.

    Args:
        draft: what the user wrote, for the places in messages.
        before: identity of the run when it started.
        now: its identity if it resumes now.

    Raises:
        JobError: every change that makes it another run, by name.
    """
    differing = changes(_with_defaults(before.job), now.job)
    others = [key for key in differing if key not in FREE | BY_CONTENT]
    # Only the key that the user set is reported, not those that depend on it, as alpha on the rank.
    faults = [
        Fault(
            draft.where(key),
            f"this run started with {_shown(differing[key][0])}; found {_shown(differing[key][1])}",
            NEW_RUN,
        )
        for key in [key for key in others if draft.sets(key)] or others
    ]
    if before.base != now.base:
        problem = f"{now.job['model']['name']} is not the base model that this run started with"
        faults.append(Fault("model.name", f"{problem}: its weights differ", NEW_RUN))
    faults += _data_faults(before, now, explained=bool(faults))
    if faults:
        raise JobError(faults)
    return {key: pair for key, pair in differing.items() if key in FREE - {"output"}}


def _with_defaults(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the keys of this version to the job of an earlier one."""
    try:
        return Job.model_validate_json(json.dumps(job)).model_dump(mode="json")
    except ValidationError:  # with a key or value that no longer exists: compared as it is
        return job


def _data_faults(before: Identity, now: Identity, *, explained: bool) -> Iterator[Fault]:
    """Report rows that differ, by their source or by what made them."""
    known = {content for _, content in before.sources}
    new = [name for name, content in now.sources if content not in known]
    at_start = ", ".join(name for name, _ in before.sources)
    for key, was, is_now in (
        ("data.train", before.rows, now.rows),
        ("data.eval", before.eval_rows, now.eval_rows),
    ):
        if was == is_now or (key == "data.eval" and before.rows != now.rows):
            continue  # a split of the same sources, or reported already
        if new or len(before.sources) != len(now.sources):
            names = ", ".join(new) or "the list of sources"
            if names == at_start:
                problem = f"{names} has changed since this run started"
            else:
                problem = f"this run started with {at_start}; found {names}"
            yield Fault(key, problem, NEW_RUN)
        elif not explained:
            problem = "its rows have other tokens than when this run started"
            hint = f"the tokenizer, its template or this program's version differs; {NEW_RUN}"
            yield Fault(key, problem, hint)


def _of_this_job(draft: Draft, folder: Path, name: str) -> ResumePoint:
    """Make the resume point, unless the user names another output for the run."""
    given = [layer.settings["output"] for layer in draft.layers if "output" in layer.settings]
    if given and (setting := given[-1]).value is not None:
        own = setting.order.source == FILE and setting.where.startswith(f"{RunFiles(folder).job}:")
        if not own and expanded(str(setting.value)).absolute() != folder.absolute():
            problem = f"{setting.value} is not the run that `resume` names, {folder}"
            raise JobError.at(setting.where, problem, "leave one of the two out")
    return ResumePoint(folder, _step(folder, name))


def _names_a_step(text: str) -> bool:
    return bool(NUMBER.fullmatch(text) or STEP.fullmatch(text))


def _step(folder: Path, name: str) -> int | None:
    """Return the step of a checkpoint, which must exist, by its folder name; None for ""."""
    if not name:
        return None
    match, there = STEP.fullmatch(name), Run(folder).checkpoints
    if match is None or int(match[1]) not in there:
        problem = f"{folder} has no checkpoint {name}"
        known = ", ".join(step_name(step) for step in there) or "none"
        raise JobError.at("resume", problem, f"it has {known}")
    return int(match[1])


def _flat(job: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, values in job.items():
        if isinstance(values, Mapping):
            yield from ((f"{section}.{key}", value) for key, value in values.items())
        else:
            yield section, values


def _shown(value: object) -> str:
    return as_yaml(value) if isinstance(value, list | tuple | Mapping) else show(value)
