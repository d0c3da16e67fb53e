"""Content of a run's environment.json."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from typing import Any

from qwen_local.backends.base import Setup
from qwen_local.backends.machine import Machine
from qwen_local.backends.select import Choice

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


def environment(
    machine: Machine, choice: Choice, setup: Setup, commit: str | None
) -> dict[str, Any]:
    """Versions, hardware, engine and the git commit of the working folder.

    Args:
        machine: the present one.
        choice: engine and device.
        setup: of the engine.
        commit: of the base model on the hub.
    """
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
