"""The folder of a run: its name, that it is free, and the files that say what was run."""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from qwen_local.backends.base import Setup
from qwen_local.backends.select import Choice, Machine
from qwen_local.errors import JobError, RunBusyError
from qwen_local.files import NO_ROOM, expanded, json_bytes, new_name, replace_file, sync_folder
from qwen_local.job.reader import file_layer
from qwen_local.job.schema import SCHEMA, Job, ModelSpec
from qwen_local.runs.events import METRICS

log = logging.getLogger("qwen_local")

LOCK, JOB, CHECKPOINTS = ".lock", "job.yaml", "checkpoints"
PACKAGES = (
    "qwen-local",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "mlx",
    "mlx-lm",
    "tokenizers",
    "numpy",
)


def run_folder(job: Job) -> Path:
    """Where a run of this job writes: `output`, or the default."""
    if job.output is None:
        return default_output(job.model.name)
    return expanded(job.output)


def default_output(model: str, root: Path = Path("runs")) -> Path:
    """`runs/<model>-<date>-<n>`, n being the first that is free.

    >>> default_output("Qwen/Qwen3-0.6B", Path("/nowhere")).name[:11]
    'Qwen3-0.6B-'
    """
    stem = f"{Path(model).name or 'model'}-{datetime.date.today():%Y%m%d}"
    number = 1
    while (root / f"{stem}-{number}").exists():
        number += 1
    return root / f"{stem}-{number}"


def newest_output(model: str | None, root: Path = Path("runs")) -> Path | None:
    """The run in `root` that was written to last, None without one.

    Args:
        model: whose run. The last part of its name counts: it may lie elsewhere by now. None takes
            the run of any model.
        root: the folder of the runs, whatever they are called.
    """
    places = root.iterdir() if root.is_dir() else ()
    runs = [run for run in places if os.path.isfile(run / JOB)]  # noqa: PTH113 - Path raises, if barred
    for run in sorted(runs, key=lambda run: (_written_at(run), run.name), reverse=True):
        if model is None or Path(_model_of(run)).name == Path(model).name:
            return run
    return None


def _written_at(run: Path) -> int:
    """When a run was begun or moved on last, in nanoseconds."""
    return max((run / name).stat().st_mtime_ns for name in (JOB, METRICS) if (run / name).exists())


def _model_of(run: Path) -> str:
    """The model that a run's job.yaml names."""
    setting = file_layer(run / JOB, SCHEMA).settings.get("model.name")
    return ModelSpec().name if setting is None else str(setting.value)


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Have a run's folder, which exists, for this process alone. Its death frees the folder.

    Raises:
        RunBusyError: another process has it.
        JobError: it cannot be written to.
    """
    try:
        file = os.open(output / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        problem = f"{output} cannot be written to: {(error.strerror or str(error)).lower()}"
        raise JobError.at("output", problem, "copy the run to where you may write") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunBusyError(_busy(output, os.pread(file, 4096, 0))) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            log.info("%s: this file system has no locks: start no second process on it", output)
        now = datetime.datetime.now().astimezone()
        owner = {"pid": os.getpid(), "host": platform.node(), "since": f"{now:%Y-%m-%d %H:%M:%S}"}
        os.ftruncate(file, 0)
        os.pwrite(file, json_bytes(owner), 0)
        yield
    finally:
        os.close(file)


def check_not_busy(output: Path) -> None:
    """Refuse the folder of a run that another process works on.

    Raises:
        RunBusyError: it is.
    """
    if os.path.isfile(output / LOCK):  # noqa: PTH113 - Path raises for a name that is too long
        with (output / LOCK).open("rb") as file, suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunBusyError(_busy(output, file.read(4096))) from None


def _busy(output: Path, owner: bytes) -> str:
    """What is said of a run that another process has, from the content of its lock."""
    who = "another process"
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        read = json.loads(owner)
        who = f"process {read['pid']} on {read['host']}, since {read['since']}"
    return f"{output}: the run is being worked on by {who}\n\nhint: wait for it, or stop it first"


def check_free(output: Path) -> None:
    """Refuse a folder that a run could not be written to, or that already holds something.

    Raises:
        JobError: why not.
        RunBusyError: a run is being written there.
    """
    another = "choose another folder with --output"
    check_not_busy(output)
    try:
        there = next(place for place in (output, *output.absolute().parents) if _is_there(place))
        if not there.is_dir():
            raise JobError.at("output", f"{there} is not a folder", another)
        begun = {LOCK, new_name(JOB)}  # of a run that died before it had a job.yaml
        if there == output and any(path.name not in begun for path in output.iterdir()):
            ways = f"{another}, or remove this one"
            if (output / JOB).exists():
                ways = f"go on with the run in it by --resume, or {another}"
            raise JobError.at("output", f"{output} is not empty", ways)
        if not os.access(there, os.W_OK | os.X_OK):
            raise JobError.at("output", f"{there} cannot be written to", another)
    except OSError as error:
        raise JobError.at("output", f"{output}: {error.strerror}", another) from None


def _is_there(place: Path) -> bool:
    """Whether the path is taken, be it by a link that leads nowhere.

    Raises:
        OSError: it can be neither taken nor free, as a name that is too long.
    """
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def make_folder(output: Path) -> None:
    """Make the folder of a run, which may be there already.

    Raises:
        JobError: it cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        sync_folder(output.parent)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        problem = f"{output} cannot be made: {(error.strerror or str(error)).lower()}"
        raise JobError.at("output", problem, "choose another folder with --output") from None


def claim_folder(output: Path, job: Job) -> None:
    """Write the job.yaml of a new run into its folder, which is `locked`.

    Raises:
        JobError: another run took it meanwhile.
    """
    if (output / JOB).exists():
        problem = f"{output} was taken by another run just now"
        raise JobError.at("output", problem, "run the command again")
    replace_file(output / JOB, job.to_yaml().encode())


def environment(
    machine: Machine, choice: Choice, setup: Setup, commit: str | None
) -> dict[str, Any]:
    """The content of environment.json: versions, hardware, the working folder's git commit."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "backend": choice.backend,
        "device": choice.device,
        "reason": choice.reason,
        "dtype": setup.dtype,
        "quantization": setup.quantization,
        "micro_batch_tokens": setup.micro_batch_tokens,
        "hardware": {
            "system": machine.system,
            "processor": machine.processor,
            "memory_bytes": machine.memory_bytes,
            "gpu": machine.gpu,
            "gpu_bytes": machine.gpu_bytes,
            "driver": machine.driver,
        },
        "base_commit": commit,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        "packages": versions,
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    asked = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None
