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

from qwen_local.errors import JobError

PACKAGES = ("qwen-local", "torch", "transformers", "peft", "mlx", "mlx-lm", "tokenizers", "numpy")


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
    """Refuse a folder that already holds something.

    Raises:
        JobError: the folder is not empty, or is a file.
    """
    if output.is_dir() and any(output.iterdir()):
        raise JobError.at(
            "output",
            f"{output} is not empty",
            "choose another folder with --output, or remove this one first",
        )
    if output.exists() and not output.is_dir():
        raise JobError.at("output", f"{output} is a file", "choose a folder with --output")
    parent = next(p for p in (output, *output.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise JobError.at("output", f"{parent} cannot be written to", "choose another --output")


def environment(backend: str, device: str, dtype: str, commit: str | None) -> dict[str, Any]:
    """The content of environment.json: versions, hardware, the working folder's git commit."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "backend": backend,
        "device": device,
        "dtype": dtype,
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
