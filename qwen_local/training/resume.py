"""Going on with a run: which one, from which checkpoint, and whether it is still the same run."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping
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
from qwen_local.runs.directory import CHECKPOINTS, JOB, newest_output
from qwen_local.runs.events import METRICS, read_metrics
from qwen_local.runs.state import Identity, Saved, from_files

log = logging.getLogger("qwen_local")

BY_CONTENT = {"model.name", "model.revision", "data.train", "data.eval"}
"""Keys that name what may lie elsewhere on another machine: the content is compared instead."""
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
}
"""Keys that may change when a run goes on."""
NUMBER = re.compile("[0-9]{1,9}")
OTHERWISE = "for another job begin another run, without --resume and with another --output"


@dataclass(frozen=True, slots=True)
class Run:
    """A run to go on with."""

    folder: Path
    step: int | None
    """Of the checkpoint asked for; None takes the newest that is good."""

    @property
    def place(self) -> Path:
        """The path that `--resume=` takes for it."""
        if self.step is None:
            return self.folder
        return self.folder / CHECKPOINTS / step_name(self.step)


@dataclass(frozen=True, slots=True)
class TakenUp:
    """What a run goes on from."""

    saved: Saved
    lost: int
    """Steps to be computed again because newer checkpoints are damaged."""
    damages: tuple[Damage, ...]


def find_run(draft: Draft, resume: str, *, any_model: bool = False) -> Run:
    """The run that `--resume` means.

    Args:
        draft: of the command.
        resume: "" for the run in the job's output folder, or where it has none for the newest of
            this model; else a run's folder, a checkpoint's, or the name or step of one in that run.
        any_model: the newest of all runs will do, where the job has no output folder.

    Raises:
        JobError: there is no such run or checkpoint.
    """
    if (found := named(resume)) is not None:
        return _of_this_job(draft, *found)
    given = draft.job.output
    model = None if any_model else draft.job.model.name
    folder = newest_output(model) if given is None else _expanded(given)
    if resume and (folder is None or not _names_a_step(resume)):
        problem = f"{resume} is neither a run nor a checkpoint"
        raise JobError.at("--resume", problem, "name a run's folder, or one in its checkpoints/")
    if folder is None:
        problem = f"there is no run{'' if model is None else f' of {model}'} in runs/"
        raise JobError.at("--resume", problem, "pass --output, or --resume=RUN")
    if not _is_run(folder):
        problem, hint = f"there is no run in {folder}", "leave --resume out to begin one"
        if checkpoints.steps_in(folder / CHECKPOINTS):
            problem, hint = f"{folder} has checkpoints and no {JOB}", f"put its {JOB} back"
        raise JobError.at("--resume", problem, hint)
    return Run(
        folder, _step(folder, step_name(int(resume)) if NUMBER.fullmatch(resume) else resume)
    )


def named(resume: str) -> tuple[Path, str] | None:
    """(the run, the name of a checkpoint of it or "") of a path; None where it leads to no run."""
    if not resume:
        return None
    place = _expanded(resume)
    if _is_run(place):
        return place, ""
    whole = place.absolute()
    if STEP.fullmatch(whole.name) and whole.parent.name == CHECKPOINTS:
        folder = whole.parent.parent
        if _is_run(folder):
            return folder if place.is_absolute() else Path(os.path.relpath(folder)), whole.name
    return None


def own_job(resume: str) -> Path | None:
    """The job.yaml of the run that `--resume=PATH` names, None where it names no run."""
    found = named(resume)
    if found is None:
        return None
    job = found[0] / JOB
    if job.stat().st_size == 0:  # and not the job of nothing but defaults
        raise JobError.at(str(job), "is empty", "put the run's job back, or name it: JOB --resume")
    return job


def take_up(run: Run) -> TakenUp | None:
    """Read the checkpoint to go on from.

    None where the run ended before its first checkpoint.

    Raises:
        CheckpointError: the one asked for, or every one that is there, is damaged.
    """
    root = run.folder / CHECKPOINTS
    checkpoints.recover(root)
    damages: list[Damage] = []
    try:
        if run.step is not None:
            step, saved = run.step, from_files(checkpoints.read(root / step_name(run.step)))
        else:
            found = checkpoints.newest(root, from_files)
            if found is None:
                _check_had_none(run.folder)
                return None
            step, saved, damages = found
    except DamagedError as error:
        raise CheckpointError(
            f"{root}: no checkpoint can be taken: {error}\n\n"
            "hint: name another with --resume=CHECKPOINT, or begin again in another --output"
        ) from None
    for damage in damages:
        log.info("warning: %s is damaged: %s", damage.folder, damage.problem)
    lost = checkpoints.steps_in(root)[0] - step if damages else 0
    if damages:
        log.info("the newest good checkpoint is that of step %d: %d steps to repeat", step, lost)
    return TakenUp(saved, lost, tuple(damages))


def _check_had_none(folder: Path) -> None:
    """Refuse to begin a run again that had got further.

    Raises:
        CheckpointError: it had checkpoints.
    """
    metrics = folder / METRICS
    if metrics.exists() and any(True for _ in read_metrics(metrics, "checkpoint")):
        raise CheckpointError(
            f"{folder}: this run had checkpoints, and none is there any more\n\n"
            "hint: put them back, or begin another run with another --output"
        )


def leave_behind(run: Run, taken_up: TakenUp) -> None:
    """Leave no newer checkpoint behind the one that is gone on from: its steps come again."""
    root = run.folder / CHECKPOINTS
    checkpoints.set_aside(root, taken_up.damages)
    for step in checkpoints.steps_in(root):
        if step > taken_up.saved.standing.step:
            checkpoints.discard(root, step)
    sync_folder(root)  # before metrics.jsonl is cut: one that came back would lack its steps there


def resume_command(folder: Path) -> str:
    """What goes on with a run."""
    return f"qwen-local train --resume={shlex.quote(str(folder))}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(before, now) by dotted key of two resolved jobs, for all keys that differ."""
    a, b = dict(_flat(before)), dict(_flat(now))
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def as_yaml(value: object) -> str:
    """A value of a resolved job as its job.yaml has it, in a line.

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
    """What has changed and may: (before, now) by key.

    Args:
        draft: what the user wrote, for the places of it.
        before: what the run was begun as.
        now: what it would be gone on with as.

    Raises:
        JobError: every change that makes it another run, by name.
    """
    differing = changes(_with_defaults(before.job), now.job)
    others = [key for key in differing if key not in FREE | BY_CONTENT]
    # Of what follows from another key, as alpha from the rank, only that key is told.
    faults = [
        Fault(
            draft.where(key),
            f"this run was begun with {_shown(differing[key][0])}; "
            f"found {_shown(differing[key][1])}",
            OTHERWISE,
        )
        for key in [key for key in others if draft.sets(key)] or others
    ]
    if before.base != now.base:
        problem = f"{now.job['model']['name']} is not the base model that this run was begun with"
        faults.append(Fault("model.name", f"{problem}: its weights differ", OTHERWISE))
    faults += _data_faults(before, now, explained=bool(faults))
    if faults:
        raise JobError(faults)
    return {key: pair for key, pair in differing.items() if key in FREE - {"output"}}


def _with_defaults(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """A job of an earlier version with the keys that have come since."""
    try:
        return Job.model_validate_json(json.dumps(job)).model_dump(mode="json")
    except ValidationError:  # it has a key that is no more, or a value: compared as it is
        return job


def _data_faults(before: Identity, now: Identity, *, explained: bool) -> Iterator[Fault]:
    """Rows that differ are a fault; named by their source, or by what made them."""
    known = {content for _, content in before.sources}
    new = [name for name, content in now.sources if content not in known]
    began = ", ".join(name for name, _ in before.sources)
    for key, was, is_now in (
        ("data.train", before.rows, now.rows),
        ("data.eval", before.eval_rows, now.eval_rows),
    ):
        if was == is_now or (key == "data.eval" and before.rows != now.rows):
            continue  # a split of the same sources, or said already
        if new or len(before.sources) != len(now.sources):
            names = ", ".join(new) or "the list of sources"
            if names == began:
                problem = f"{names} has changed since this run began"
            else:
                problem = f"this run began with {began}; found {names}"
            yield Fault(key, problem, OTHERWISE)
        elif not explained:
            problem = "its rows are other tokens than when this run began"
            hint = f"the tokenizer, its template or this program's version differs; {OTHERWISE}"
            yield Fault(key, problem, hint)


def _of_this_job(draft: Draft, folder: Path, name: str) -> Run:
    """The run, unless the user names another output for it."""
    given = [layer.settings["output"] for layer in draft.layers if "output" in layer.settings]
    if given and (setting := given[-1]).value is not None:
        own = setting.order.source == FILE and setting.where.startswith(f"{folder / JOB}:")
        if not own and _expanded(str(setting.value)).absolute() != folder.absolute():
            problem = f"{setting.value} is not the run that --resume names, {folder}"
            raise JobError.at(setting.where, problem, "leave one of the two out")
    return Run(folder, _step(folder, name))


def _is_run(folder: Path) -> bool:
    return os.path.exists(folder / JOB)  # noqa: PTH110 - Path raises for a name that is too long


def _expanded(path: str) -> Path:
    return expanded(path)


def _names_a_step(text: str) -> bool:
    return bool(NUMBER.fullmatch(text) or STEP.fullmatch(text))


def _step(folder: Path, name: str) -> int | None:
    """The step of a checkpoint by its folder's name, which must be there; None for ""."""
    if not name:
        return None
    match, there = STEP.fullmatch(name), checkpoints.steps_in(folder / CHECKPOINTS)
    if match is None or int(match[1]) not in there:
        problem = f"{folder} has no checkpoint {name}"
        known = ", ".join(step_name(step) for step in there) or "none"
        raise JobError.at("--resume", problem, f"it has {known}")
    return int(match[1])


def _flat(job: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, values in job.items():
        if isinstance(values, Mapping):
            yield from ((f"{section}.{key}", value) for key, value in values.items())
        else:
            yield section, values


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    return show(value)
