"""metrics.jsonl: whole lines, in order, of valid JSON."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_local.errors import DiskFullError
from qwen_local.runs.events import Metrics, cut_metrics, read_metrics


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


WRITTEN: list[tuple[str, dict[str, Any]]] = [
    ("start", {"steps": 9}),
    ("eval", {"step": 0}),
    ("train", {"step": 1}),
    ("train", {"step": 2}),
    ("eval", {"step": 2}),
    ("warning", {"step": 2}),
    ("checkpoint", {"step": 2}),
    ("end", {"steps": 2}),
    ("resume", {"step": 2}),
    ("memory", {"step": 3}),
    ("train", {"step": 3}),
    ("end", {"steps": 3}),
]


@pytest.mark.parametrize(
    ("step", "evaluated", "kept"),
    [
        (3, 2, 12),
        (2, 2, 9),  # what belongs to step 3 goes, its budget too
        (2, 0, 4),  # step 2 is evaluated once more, and warned of once more
        (1, 0, 3),
        (0, None, 1),
    ],
)
def test_what_came_after_a_checkpoint_is_cut_off(
    tmp_path: Path, step: int, evaluated: int | None, kept: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path) as metrics:
        for event, fields in WRITTEN:
            metrics.write(event, **fields)
    cut_metrics(path, step, evaluated)
    assert [(event.pop("event"), event) for event in read_metrics(path)] == WRITTEN[:kept]


@pytest.mark.parametrize("torn", [b'{"event": "train", "st', b"\xff\xfe\n", b"[1]\n", b"\0" * 40])
def test_a_line_that_was_cut_short_is_none_and_goes_on_resuming(
    tmp_path: Path, torn: bytes
) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path) as metrics:
        metrics.write("train", step=1)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert list(read_metrics(path)) == [{"event": "train", "step": 1}]
    cut_metrics(path, 1, None)
    assert path.read_bytes() == whole


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_told_with_what_was_needed() -> None:
    with Metrics(Path("/dev/full")) as metrics, pytest.raises(DiskFullError) as full:
        metrics.write("train", step=1)
    assert str(full.value).startswith("/dev/full: not enough disk space: 30 bytes are needed, ")
