"""Where a run is written: its default name, a check that the folder is free, and its creation."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from qwen_local.errors import JobError
from qwen_local.files import NO_ROOM, expanded, new_name, replace_file, sync_folder
from qwen_local.job.schema import Job
from qwen_local.runs.lock import check_not_busy
from qwen_local.runs.names import RUNS, RunFiles


def run_folder(job: Job) -> Path:
    """Folder that a run of this job writes to: `output`, or the default."""
    if job.output is None:
        return default_output(job.model.name)
    return expanded(job.output)


def default_output(model: str, root: Path = RUNS) -> Path:
    """`runs/<model>-<date>-<n>` with the first free n.

    >>> default_output("Qwen/Qwen3-0.6B", Path("/nowhere")).name[:11]
    'Qwen3-0.6B-'
    """
    stem = f"{Path(model).name or 'model'}-{datetime.date.today():%Y%m%d}"
    number = 1
    while (root / f"{stem}-{number}").exists():
        number += 1
    return root / f"{stem}-{number}"


def check_free(output: Path) -> None:
    """Refuse a folder that is not empty or not writable.

    Raises:
        JobError: the reason.
        RunBusyError: another process writes a run there.
    """
    another = "choose another folder with `output`"
    files = RunFiles(output)
    try:
        check_not_busy(output)
        there = next(place for place in (output, *output.absolute().parents) if _exists(place))
        if not there.is_dir():
            raise JobError.at("output", f"{there} is not a folder", another)
        # Left by a process that died before it had written job.yaml.
        leftover = {files.lock.name, new_name(files.job.name)}
        if there == output and any(path.name not in leftover for path in output.iterdir()):
            ways = f"{another}, or remove this one"
            if files.job.exists():
                ways = f"continue the run in it with `resume`, or {another}"
            raise JobError.at("output", f"{output} is not empty", ways)
        if not os.access(there, os.W_OK | os.X_OK):
            raise JobError.at("output", f"{there} cannot be written to", another)
    except OSError as error:
        raise JobError.at("output", f"{output}: {error.strerror}", another) from None


def _exists(place: Path) -> bool:
    """True if the path is taken; a dangling link takes it as well.

    Raises:
        OSError: the path can never exist, for example because its name is too long.
    """
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def make_folder(output: Path) -> None:
    """Create the folder of a run; it may exist.

    Raises:
        JobError: it cannot be created.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        sync_folder(output.parent)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        problem = f"{output} cannot be created: {(error.strerror or str(error)).lower()}"
        raise JobError.at("output", problem, "choose another folder with `output`") from None


def claim_folder(output: Path, job: Job) -> None:
    """Write job.yaml of a new run into its folder, whose lock this process holds.

    Raises:
        JobError: another run has taken the folder in the meantime.
    """
    file = RunFiles(output).job
    if file.exists():
        problem = f"another run has just taken {output}"
        raise JobError.at("output", problem, "run the command again")
    replace_file(file, job.to_yaml().encode())
