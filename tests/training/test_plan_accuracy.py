"""`plan` against `train`: peak resident memory of both engines on the CPU.

In processes of their own, because the peak is the process's; `benchmarks/plan_accuracy.py` does the
same for more settings and a larger model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from qwen_local.backends.machine import Engine


def said(folder: Path, command: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "qwen_local", command, "--json", *arguments],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def test_the_peak_of_a_run_is_within_20_percent_of_its_plan(engine: Engine, tmp_path: Path) -> None:
    job = ("--backend", engine, "--device", "cpu", "--steps", "10")
    planned = said(tmp_path, "plan", *job)["memory"]
    peak = said(tmp_path, "train", "--quiet", "--output", "run", *job)["peak_memory_bytes"]
    assert planned["peak"] == planned["total"]
    assert 0.8 <= peak / planned["peak"] <= 1.2, (peak, planned)
