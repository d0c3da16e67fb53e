"""Whatever happens at whichever file operation: the previous checkpoint is there, or the new one.

What is tried, and what must hold after each try, is in kill_matrix.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("kill_matrix.py")
ROOT = Path(__file__).parents[2]
SCENARIOS = (
    "first save",
    "second save",
    "save with rotation",
    "the newest step again",
    "recovery",
)
FAULTS = (
    "kill before",
    "kill after",
    "ENOSPC",
    "EIO",
    "short write",
    "torn write",
    "power cut, names kept",
    "power cut, names lost",
)


@pytest.fixture(scope="module")
def matrix() -> dict[str, Any]:
    """What the driver found, in a process without engines and with one thread."""
    alone = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, **alone},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_no_fault_at_any_operation_leaves_a_mixture(matrix: dict[str, Any]) -> None:
    assert matrix["failures"] == []


def test_every_operation_of_every_scenario_was_tried(matrix: dict[str, Any]) -> None:
    points = matrix["points"]
    print(f"{sum(points.values())} points; {matrix['crashes']} different things to recover from")
    assert sum(points.values()) > 2000
    for scenario in SCENARIOS[:-1]:
        operations = matrix["operations"][scenario]
        writes = sum(name == "write" for name, _, _ in operations)
        assert [points[f"{scenario}: {fault}"] for fault in FAULTS] == [
            *[len(operations)] * 4,
            *[writes] * 2,
            *[len(operations) + 1] * 2,
        ]
        assert len(operations) > 20 and writes == 4
    assert matrix["crashes"] > 30
    for fault in (*FAULTS[:4], *FAULTS[6:]):  # a recovery writes nothing
        assert points[f"recovery: {fault}"] > 100


def test_no_engine_is_needed_for_it(matrix: dict[str, Any]) -> None:
    assert {"numpy", "qwen_local"} <= set(matrix["modules"])
    assert not {"torch", "mlx", "transformers", "peft"} & set(matrix["modules"])


@pytest.mark.parametrize("scenario", SCENARIOS[:-1])
def test_everything_is_on_the_disk_before_its_name_and_its_name_before_the_end(
    scenario: str, matrix: dict[str, Any]
) -> None:
    """The order that a power cut needs: each file, then COMPLETE.json, the folder, its name."""
    operations: list[tuple[str, str, str | None]] = list(map(tuple, matrix["operations"][scenario]))
    [(named, target, new)] = [
        (at, path, source)
        for at, (name, path, source) in enumerate(operations)
        if name == "replace" and source is not None and "/.new-" in source
    ]
    assert new == f"checkpoints/.new-{PurePosixPath(target).name}"
    files = [path for name, path, _ in operations[:named] if name == "write"]
    assert [PurePosixPath(file).name for file in files] == [
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "progress.json",
        "COMPLETE.json",
    ]
    order = [operations.index((what, file, None)) for file in files for what in ("write", "fsync")]
    folder = operations.index(("fsync", new, None))
    assert [*order, folder, named] == sorted({*order, folder, named})
    parent = operations.index(("fsync", "checkpoints", None), named)
    removed = [at for at, (name, _, _) in enumerate(operations) if name in ("unlink", "rmdir")]
    assert all(at > parent for at in removed)
