"""Whole runs on both engines, from a job to its adapter: they learn, and along one curve.

The rule of promise 1: losses a and b of a step satisfy |a - b| / max(|b|, 0.1) <= 1e-4.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_local.backends.machine import Engine
from qwen_local.embedded import sample_data_path
from qwen_local.job.schema import read_job
from qwen_local.runs.curves import largest_difference
from qwen_local.runs.events import TrainEvent, read_events
from qwen_local.training.run import train

pytestmark = pytest.mark.slow

ENGINES: tuple[Engine, ...] = ("mlx", "cuda")
BOUND = 1e-4
CODE_ALPACA = Path(__file__).parents[2] / "shared/data/code-alpaca/code_alpaca_2k.json"
"""2,000 rows of CodeAlpaca-20k, beside the repository on machines that have them."""


def curve(engine: Engine, output: Path, *sets: str, **flags: Any) -> list[float]:
    """The loss of every step of a run on the CPU: the embedded job, with changes."""
    draft = read_job(None, sets=sets, flags={**flags, "output": str(output)})
    train(draft, backend=engine, device="cpu", quiet=True)
    return [event.loss for event in read_events(output / "metrics.jsonl", TrainEvent)]


def test_the_embedded_job_learns_along_one_curve(tmp_path: Path) -> None:
    a, b = (curve(engine, tmp_path / engine, steps=12) for engine in ENGINES)
    assert sum(b[-3:]) < 0.8 * sum(b[:3])
    assert largest_difference(a, b) <= BOUND


def test_eight_examples_are_learned_by_heart_along_one_curve(tmp_path: Path) -> None:
    lines = (sample_data_path() / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "eight.jsonl").write_text("".join(lines[:8]), "utf-8")
    a, b = (
        curve(
            engine,
            tmp_path / engine,
            data=str(tmp_path / "eight.jsonl"),
            steps=60,
            batch_size=8,
            learning_rate=1e-3,
            lora_dropout=0.0,
        )
        for engine in ENGINES
    )
    assert a[-1] < 0.05 and b[-1] < 0.05
    assert largest_difference(a, b) <= BOUND


def sample_rows(file: Path) -> Path:
    """The sample data in the form of CodeAlpaca: one JSON list of Alpaca records."""
    lines = (sample_data_path() / "train.jsonl").read_text("utf-8").splitlines()
    pairs = [json.loads(line)["messages"][-2:] for line in lines]
    records = [
        {"instruction": asked["content"], "input": "", "output": answer["content"]}
        for asked, answer in pairs
    ]
    file.write_text(json.dumps(records), "utf-8")
    return file


@pytest.mark.parametrize("real", [False, *([True] if CODE_ALPACA.exists() else [])])
def test_a_list_of_alpaca_records_is_learned_along_one_curve(real: bool, tmp_path: Path) -> None:
    data = CODE_ALPACA if real else sample_rows(tmp_path / "alpaca.json")
    sets = ("data.limit=200", "data.eval_fraction=0")
    a, b = (curve(engine, tmp_path / engine, *sets, data=str(data), steps=20) for engine in ENGINES)
    report = json.loads((tmp_path / "cuda/data.json").read_text())
    assert (report["sources"][0]["records"], report["sources"][0]["format"]) == (200, "alpaca")
    assert sum(b[-5:]) < 0.95 * sum(b[:5])
    assert largest_difference(a, b) <= BOUND
