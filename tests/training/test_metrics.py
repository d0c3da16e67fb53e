"""metrics.jsonl: whole lines, in order, of valid JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

from qwen_local.training.metrics import Metrics, read_metrics


def test_an_event_is_one_line_with_its_fields_in_the_order_given(tmp_path: Path) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        metrics.write("eval", step=3, loss=0.5)
        metrics.write("end", run="run é\nline")
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        b'{"event": "eval", "step": 3, "loss": 0.5}\n'
        b'{"event": "end", "run": "run \\u00e9\\nline"}\n'
    )


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        metrics.write("train", loss=math.nan, grad_norm=math.inf, low=-math.inf, zero=0.0, tokens=7)
    (event,) = read_metrics(tmp_path / "metrics.jsonl")
    assert event == {
        "event": "train",
        "loss": None,
        "grad_norm": None,
        "low": None,
        "zero": 0.0,
        "tokens": 7,
    }


def test_an_event_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        for step in range(3):
            metrics.write("train", step=step)
            lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in lines] == list(range(step + 1))


def test_events_are_appended_to_those_of_an_earlier_run(tmp_path: Path) -> None:
    for step in (1, 2):
        with Metrics(tmp_path / "metrics.jsonl") as metrics:
            metrics.write("train", step=step)
    assert [event["step"] for event in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_events_of_one_kind_can_be_read_alone(tmp_path: Path) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        for event, step in (("train", 1), ("eval", 1), ("train", 2)):
            metrics.write(event, step=step)
        assert [event["step"] for event in read_metrics(tmp_path / "metrics.jsonl", "train")] == [
            1,
            2,
        ]
