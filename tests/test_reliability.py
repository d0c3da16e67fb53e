"""Training that is killed and gone on with ends as the unbroken run: six points on each engine.

`python -m benchmarks.reliability` tries them all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_local.backends.machine import Engine

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
POINTS = 6


@pytest.mark.parametrize("engine", ["cuda", "mlx"])
def test_a_killed_run_ends_bit_for_bit_as_the_unbroken_one(engine: Engine) -> None:
    options = ("--engine", engine, "--sample", str(POINTS), "--output", "-")
    asked = subprocess.run(
        [sys.executable, "-m", "benchmarks.reliability", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)["engines"][engine]
    assert (found["points"], found["failures"]) == (POINTS, [])
    assert found["operations"] > 200
