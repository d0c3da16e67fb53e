"""The folder of a run: its name, that it is free, and the files that say what was run."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from qwen_local.backends.base import Setup
from qwen_local.backends.select import Choice, Machine
from qwen_local.errors import JobError
from qwen_local.job import Job

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
    return Path(os.path.expanduser(job.output))  # noqa: PTH111 - Path raises for `~nobody`


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


def check_free(output: Path) -> None:
    """Refuse a folder that a run could not be written to, or that already holds something.

    Raises:
        JobError: why not.
    """
    another = "choose another folder with --output"
    try:
        there = next(place for place in (output, *output.absolute().parents) if _is_there(place))
        if not there.is_dir():
            raise JobError.at("output", f"{there} is not a folder", another)
        if there == output and any(output.iterdir()):
            raise JobError.at("output", f"{output} is not empty", f"{another}, or remove this one")
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


def claim_folder(output: Path, job: Job) -> None:
    """Make the folder of a run and write its job.yaml, which only one of two runs at once can.

    Raises:
        JobError: it cannot be made, or another run took it meanwhile.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with (output / "job.yaml").open("x", encoding="utf-8") as file:
            file.write(job.to_yaml())
    except FileExistsError:
        problem = f"{output} was taken by another run just now"
        raise JobError.at("output", problem, "run the command again") from None
    except OSError as error:
        problem = f"{output} cannot be made: {(error.strerror or str(error)).lower()}"
        raise JobError.at("output", problem, "choose another folder with --output") from None


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
