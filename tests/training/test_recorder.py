"""One call of the loop, and everything that is recorded of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from qwen_local.rows.scores import Scores
from qwen_local.runs.eval_rows import EvalRowsWriter, read_eval_rows
from qwen_local.runs.events import (
    EvalEvent,
    Event,
    EventWriter,
    MemoryEvent,
    TrainEvent,
    WarningEvent,
    read_events,
)
from qwen_local.runs.state import TrainState
from qwen_local.training.checkpoint_writer import CheckpointWriter
from qwen_local.training.health import Health
from qwen_local.training.progress import Progress
from qwen_local.training.recorder import AUTO_SAVE_SECONDS, Recorder
from qwen_local.training.tensorboard import TensorBoard


class Noted:
    """Stands for the checkpoint writer and TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[TrainState] = []
        self.points: list[Event] = []
        self.closed = False

    def save(self, state: TrainState) -> None:
        self.saved.append(state)

    def write(self, event: Event) -> None:
        self.points.append(event)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def noted(tmp_path: Path) -> Noted:
    return Noted(tmp_path)


@pytest.fixture
def recorder(tmp_path: Path, noted: Noted) -> Callable[..., Recorder]:
    def make(**given: Any) -> Recorder:
        defaults: dict[str, Any] = {
            "progress": Progress(1, quiet=True),
            "health": Health(2),
            "save_every": 10,
        }
        rows = EvalRowsWriter(tmp_path / "eval_rows.safetensors", limit=2 * 2 * 4)
        events = EventWriter(tmp_path / "metrics.jsonl")
        return Recorder(events, cast(CheckpointWriter, noted), rows, **{**defaults, **given})

    return make


def evaluate(recorder: Recorder, step: int) -> None:
    scores = Scores(np.array([0.5, 1.5]), np.array([1, 2]))
    recorder.evaluated(EvalEvent(step=step, loss=scores.mean), scores)


def test_an_event_goes_to_the_file_and_to_tensorboard_and_both_are_closed(
    recorder: Callable[..., Recorder], noted: Noted, tmp_path: Path
) -> None:
    events = [TrainEvent(step=1, loss=1.0), MemoryEvent(step=1, micro_batch_tokens=5)]
    with recorder(board=cast(TensorBoard, noted)) as opened:
        for event in events:
            opened.write(event)
    assert noted.points == events
    assert [event.KIND for event in read_events(tmp_path / "metrics.jsonl")] == ["train", "memory"]
    assert noted.closed


def test_a_step_that_looks_wrong_is_a_warning_in_the_file_and_in_the_log(
    recorder: Callable[..., Recorder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="qwen_local"), recorder() as opened:
        step = TrainEvent(step=1, loss=5.0, grad_norm=1.0)  # worse than a guess between two tokens
        opened.stepped(step, scored_loss=1.0, tokens_per_second=1.0)
    found = list(read_events(tmp_path / "metrics.jsonl", WarningEvent))
    assert [event.kind for event in found] == ["worse_than_uniform", "train_eval_gap"]
    assert caplog.messages == [f"warning: {event.message}" for event in found]


def test_the_loss_of_each_row_is_recorded_and_a_full_file_is_one_warning(
    recorder: Callable[..., Recorder], tmp_path: Path
) -> None:
    with recorder() as opened:
        for step in range(4):  # the file holds two evaluations
            evaluate(opened, step)
    rows = read_eval_rows(tmp_path / "eval_rows.safetensors")
    assert rows is not None
    assert (rows.steps_E.tolist(), rows.nll_ER.tolist()) == ([0, 3], [[0.5, 1.5]] * 2)
    (warning,) = read_events(tmp_path / "metrics.jsonl", WarningEvent)
    assert (warning.kind, warning.step, warning.numbers) == ("eval_rows_full", 2, {"rows": 2.0})
    assert warning.message == (
        "step 2: eval_rows.safetensors is full: it keeps the first evaluation and the newest 1"
    )


def test_a_checkpoint_is_due_at_the_best_step_and_as_often_as_asked(
    recorder: Callable[..., Recorder], noted: Noted
) -> None:
    with recorder(save_every=10) as opened:
        opened.start(TrainState())
        opened.save_if_due(TrainState())  # nothing was done yet
        opened.save_if_due(TrainState(step=9, best_step=8))
        opened.save_if_due(TrainState(step=10, best_step=8))
        opened.save_if_due(TrainState(step=11, best_step=11))
    assert [state.step for state in noted.saved] == [10, 11]


def test_auto_saves_by_time(
    recorder: Callable[..., Recorder], noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    with recorder(save_every="auto") as opened:
        monkeypatch.setattr("qwen_local.training.recorder.time.monotonic", lambda: clock[0])
        opened.start(TrainState())
        for step, time in ((1, AUTO_SAVE_SECONDS - 1), (2, AUTO_SAVE_SECONDS), (3, 1e3)):
            clock[0] = time
            opened.save_if_due(TrainState(step=step))
    assert [state.step for state in noted.saved] == [2]


def test_a_state_is_saved_once_with_the_memory_of_the_health_rules(
    recorder: Callable[..., Recorder], noted: Noted
) -> None:
    with recorder() as opened:
        opened.start(TrainState())
        opened.stepped(TrainEvent(step=1, loss=0.5, grad_norm=2.0), scored_loss=None,
                       tokens_per_second=1.0)  # fmt: skip
        saved = opened.save(TrainState(step=1))
        assert opened.save(saved) == saved
    assert noted.saved == [saved]
    assert saved.health["norms"] == [2.0]
