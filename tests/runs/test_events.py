"""metrics.jsonl: typed events as whole lines of valid JSON, and readers that forgive."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_local.errors import DiskFullError
from qwen_local.runs.events import (
    AdapterEvent,
    CheckpointEvent,
    EndEvent,
    EvalEvent,
    Event,
    EventWriter,
    FailedEvent,
    ForecastEvent,
    MemoryEvent,
    ResumeEvent,
    StartEvent,
    TrainEvent,
    WarningEvent,
    cut_events,
    read_events,
)

END = EndEvent(
    run="run é",
    adapter="run/adapter",
    backend="mlx",
    device="gpu",
    steps=2,
    epochs=0.5,
    train_loss=1.25,
    first_eval_loss=None,
    eval_loss=None,
    best_step=2,
    best_eval_loss=None,
    trainable_parameters=10,
    total_parameters=110,
    supervised_tokens=20,
    tokens_per_second=8.0,
    peak_memory_bytes=9,
    stopped_because="all steps done",
    restarts=0,
)
EVERY: list[tuple[Event, str]] = [
    (
        StartEvent(
            backend="cuda",
            device="cpu",
            dtype="float32",
            micro_batch_tokens=1024,
            steps=4,
            rows=26,
            trainable_parameters=10,
            total_parameters=110,
            vocabulary=50,
            tokenizer_sha256="aa",
            template_sha256="bb",
            eval_rows=3,
            eval_rows_sha256="cc",
        ),
        '{"event": "start", "died_of": null, "backend": "cuda", "device": "cpu", '
        '"dtype": "float32", "micro_batch_tokens": 1024, "steps": 4, "rows": 26, '
        '"trainable_parameters": 10, "total_parameters": 110, "vocabulary": 50, '
        '"tokenizer_sha256": "aa", "template_sha256": "bb", "eval_rows": 3, '
        '"eval_rows_sha256": "cc"}',
    ),
    (
        ResumeEvent(
            step=2,
            died_of="SIGKILL",
            backend="cuda",
            device="cpu",
            dtype="float32",
            micro_batch_tokens=512,
            steps=4,
            changed={"train.steps": [2, 4]},
            lost=1,
            trainable_parameters=10,
            total_parameters=110,
            vocabulary=50,
            tokenizer_sha256="aa",
            template_sha256="bb",
            eval_rows=0,
        ),
        '{"event": "resume", "step": 2, "died_of": "SIGKILL", "backend": "cuda", "device": "cpu", '
        '"dtype": "float32", "micro_batch_tokens": 512, "steps": 4, '
        '"changed": {"train.steps": [2, 4]}, "lost": 1, "trainable_parameters": 10, '
        '"total_parameters": 110, "vocabulary": 50, "tokenizer_sha256": "aa", '
        '"template_sha256": "bb", "eval_rows": 0, "eval_rows_sha256": null}',
    ),
    (
        ForecastEvent(
            step=0,
            training_seconds=6.5,
            evaluation_seconds=0.0,
            memory_bytes=5,
            peak_memory_bytes=4,
        ),
        '{"event": "forecast", "step": 0, "training_seconds": 6.5, "evaluation_seconds": 0.0, '
        '"memory_bytes": 5, "peak_memory_bytes": 4}',
    ),
    (
        TrainEvent(
            step=1,
            epoch=0.5,
            loss=2.5,
            learning_rate=0.001,
            grad_norm=0.75,
            tokens=8,
            supervised_tokens=4,
            computed_tokens=9,
            seconds=0.25,
            peak_memory_bytes=7,
        ),
        '{"event": "train", "step": 1, "epoch": 0.5, "loss": 2.5, "learning_rate": 0.001, '
        '"grad_norm": 0.75, "tokens": 8, "supervised_tokens": 4, "computed_tokens": 9, '
        '"seconds": 0.25, "peak_memory_bytes": 7}',
    ),
    (
        EvalEvent(step=2, loss=0.5, perplexity=1.6, supervised_tokens=3, seconds=0.125),
        '{"event": "eval", "step": 2, "loss": 0.5, "perplexity": 1.6, "supervised_tokens": 3, '
        '"seconds": 0.125}',
    ),
    (
        MemoryEvent(step=3, micro_batch_tokens=256),
        '{"event": "memory", "step": 3, "micro_batch_tokens": 256}',
    ),
    (
        WarningEvent(
            step=4, kind="loss_spike", message="step 4: high", numbers={"loss": 9.0, "median": 1.0}
        ),
        '{"event": "warning", "step": 4, "kind": "loss_spike", "message": "step 4: high", '
        '"loss": 9.0, "median": 1.0}',
    ),
    (CheckpointEvent(step=5), '{"event": "checkpoint", "step": 5}'),
    (AdapterEvent(step=5), '{"event": "adapter", "step": 5}'),
    (FailedEvent(error="no\nroom"), '{"event": "failed", "error": "no\\nroom"}'),
    (
        END,
        '{"event": "end", "run": "run \\u00e9", "adapter": "run/adapter", "backend": "mlx", '
        '"device": "gpu", "steps": 2, "epochs": 0.5, "train_loss": 1.25, "first_eval_loss": null, '
        '"eval_loss": null, "best_step": 2, "best_eval_loss": null, "trainable_parameters": 10, '
        '"total_parameters": 110, "supervised_tokens": 20, "tokens_per_second": 8.0, '
        '"peak_memory_bytes": 9, "stopped_because": "all steps done", "restarts": 0}',
    ),
]


def write(path: Path, events: Sequence[Event]) -> Path:
    with EventWriter(path) as writer:
        for event in events:
            writer.write(event)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


# --- lines ---


@pytest.mark.parametrize(("event", "line"), EVERY, ids=[event.KIND for event, _ in EVERY])
def test_an_event_is_one_line_with_its_fields_in_order_and_reads_back(
    event: Event, line: str, path: Path
) -> None:
    write(path, [event])
    assert path.read_text("utf-8") == f"{line}\n"
    assert list(read_events(path)) == [event]


def test_a_number_that_is_not_finite_is_null_and_reads_back_as_none(path: Path) -> None:
    write(path, [TrainEvent(step=1, loss=math.nan, grad_norm=math.inf, epoch=-math.inf, seconds=0)])
    fields = json.loads(path.read_text())
    assert [fields[name] for name in ("loss", "grad_norm", "epoch", "seconds")] == [
        *(None, None, None),
        0,
    ]
    (event,) = read_events(path, TrainEvent)
    assert math.isnan(event.loss) and math.isnan(event.grad_norm)


def test_an_event_can_be_read_while_the_run_continues(path: Path) -> None:
    with EventWriter(path) as writer:
        for step in range(3):
            writer.write(CheckpointEvent(step=step))
            assert [event.step for event in read_events(path, CheckpointEvent)] == [
                *range(step + 1)
            ]


def test_events_are_appended_to_those_of_an_earlier_process(path: Path) -> None:
    for step in (1, 2):
        write(path, [TrainEvent(step=step, loss=1.0)])
    assert [event.step for event in read_events(path, TrainEvent)] == [1, 2]


def test_events_of_one_kind_can_be_read_alone(path: Path) -> None:
    write(path, [event for event, _ in EVERY])
    for event, _ in EVERY:
        assert list(read_events(path, type(event))) == [event]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_an_error_with_the_bytes_that_were_needed() -> None:
    with EventWriter(Path("/dev/full")) as writer, pytest.raises(DiskFullError) as full:
        writer.write(CheckpointEvent(step=1))
    assert str(full.value).startswith("/dev/full: not enough disk space: 35 bytes are needed, ")


# --- leniency ---


def test_unknown_keys_and_events_are_ignored_and_missing_fields_are_unknown(path: Path) -> None:
    path.write_text(
        '{"event": "train", "step": 1, "loss": 2, "colour": "red"}\n'
        '{"event": "sunrise", "step": 1}\n'
        '{"event": "start", "backend": "mlx", "device": "gpu", "dtype": "bfloat16", '
        '"micro_batch_tokens": 8, "steps": 1, "rows": 1, "trainable_parameters": 1}\n'
    )
    train, start = read_events(path)
    assert isinstance(train, TrainEvent) and isinstance(start, StartEvent)
    assert (train.loss, train.tokens, math.isnan(train.epoch)) == (2.0, None, True)
    assert (start.total_parameters, start.tokenizer_sha256, start.eval_rows) == (None, None, None)


DAMAGED = [
    b'{"event": "train", "st\n',
    b"\xff\xfe\n",
    b"[1]\n",
    b"\0" * 40 + b"\n",
    b"[" * 100_000 + b"\n",
    b'{"step": 3}\n',
    b'{"event": 3}\n',
    b'{"event": "train", "step": "2"}\n',
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_skipped_in_reading_and_ends_what_a_resumed_run_keeps(
    line: bytes, path: Path
) -> None:
    before = write(path, [TrainEvent(step=1, loss=1.0)]).read_bytes()
    path.write_bytes(before + line)
    write(path, [TrainEvent(step=2, loss=2.0)])
    assert [event.step for event in read_events(path, TrainEvent)] == [1, 2]
    assert cut_events(path, 2, None) == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("torn", [b'{"event": "train", "st', b'{"event": "checkpoint", "step": 1}'])
def test_a_last_line_without_its_end_is_damaged(torn: bytes, path: Path) -> None:
    before = write(path, [TrainEvent(step=1, loss=1.0)]).read_bytes()
    path.write_bytes(before + torn)
    assert len(list(read_events(path))) == 1
    cut_events(path, 1, None)
    assert path.read_bytes() == before


def test_an_event_that_lacks_what_every_version_wrote_is_skipped(path: Path) -> None:
    path.write_text('{"event": "train", "step": 1}\n{"event": "eval", "step": 1, "loss": 3.0}\n')
    assert [event.KIND for event in read_events(path)] == ["eval"]


# --- resuming ---

WRITTEN: list[dict[str, Any]] = [
    {"event": "start", "steps": 9},
    {"event": "eval", "step": 0},
    {"event": "train", "step": 1},
    {"event": "train", "step": 2},
    {"event": "eval", "step": 2},
    {"event": "warning", "step": 2},
    {"event": "checkpoint", "step": 2},
    {"event": "end", "steps": 2},
    {"event": "resume", "step": 2},
    {"event": "memory", "step": 3},
    {"event": "train", "step": 3},
    {"event": "end", "steps": 3},
]


@pytest.mark.parametrize(
    ("step", "evaluated", "kept"),
    [
        (3, 2, 12),
        (2, 2, 9),  # what belongs to step 3 goes, its budget included
        (2, 0, 4),  # step 2 is evaluated again, and its warning comes again
        (1, 0, 3),
        (0, None, 1),
        (-1, None, 0),
    ],
)
def test_what_came_after_a_checkpoint_is_cut_off(
    step: int, evaluated: int | None, kept: int, path: Path
) -> None:
    path.write_text("".join(f"{json.dumps(fields)}\n" for fields in WRITTEN))
    cut_events(path, step, evaluated)
    assert [json.loads(line) for line in path.read_text().splitlines()] == WRITTEN[:kept]


@pytest.mark.parametrize(
    ("because", "by_signal"),
    [("all steps done", False), ("early stopping: ...", False), ("SIGTERM", True)],
)
def test_an_end_says_whether_a_signal_caused_it(because: str, by_signal: bool) -> None:
    from dataclasses import replace

    assert replace(END, stopped_because=because).stopped_by_signal is by_signal
