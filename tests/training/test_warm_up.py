"""The longest rows before the first step, with an engine that only takes notes."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_local.backends.base import Backend, RowTooLargeError
from qwen_local.errors import OutOfMemoryError
from qwen_local.rows.planner import PACKED, PADDED, Layout, micro_batches
from qwen_local.rows.rows import Rows
from qwen_local.rows.scores import Scores
from qwen_local.rows.targets import Targets
from qwen_local.runs.eval_rows import EvalRowsWriter
from qwen_local.runs.events import EventWriter, MemoryEvent, read_events
from qwen_local.training.checkpoint_writer import CheckpointWriter
from qwen_local.training.health import Health
from qwen_local.training.loop import Data
from qwen_local.training.progress import Progress
from qwen_local.training.recorder import Recorder
from qwen_local.training.warm_up import WarmUp, _first, _largest, _packed, warm_up


class Notes:
    """Memory holds rows up to `room`; its budget halves once if `tight`."""

    def __init__(self, *, room: int = 1000, tight: bool = False, layout: Layout = PADDED) -> None:
        self.layout = layout
        self.micro_batch_tokens, self._room, self._tight = 64, room, tight
        self.rehearsed: list[list[int]] = []
        self.scored: list[list[int]] = []

    def warm_up(self, rows: Rows) -> int:
        self._look_at(rows)
        if self._tight:
            self.micro_batch_tokens, self._tight = self.micro_batch_tokens // 2, False
        self.rehearsed.append(rows.lengths_R.tolist())
        return len(rows) * int(rows.lengths_R.max())

    def score(self, rows: Rows) -> Scores:
        self._look_at(rows)
        self.scored.append(rows.lengths_R.tolist())
        return Scores(np.zeros(len(rows)), rows.lengths_R)

    def peak_memory_bytes(self) -> int:
        return 8

    def _look_at(self, rows: Rows) -> None:
        for row, length in enumerate(rows.lengths_R.tolist()):
            if length > self._room:
                raise RowTooLargeError(row, length)


def rows(*lengths: int) -> Rows:
    return Rows.from_pairs(([1] * length, Targets.of([1] * length)) for length in lengths)


def run(
    folder: Path,
    engine: Notes,
    train: Rows,
    evaluation: Rows | None = None,
    *,
    records: bool = False,
) -> WarmUp:
    data = Data(
        train=train,
        evaluation=evaluation,
        train_places=[f"train.jsonl:{n + 1}" for n in range(len(train))],
        eval_places=[f"eval.jsonl:{n + 1}" for n in range(99)],
    )
    recorder = Recorder(
        EventWriter(folder / "metrics.jsonl"),
        cast(CheckpointWriter, None),
        EvalRowsWriter(folder / "eval_rows.safetensors"),
        progress=Progress(1, quiet=True),
        health=Health(9),
        save_every="auto",
    )
    with recorder:
        engine_ = cast(Backend, engine)
        return warm_up(engine_, data, recorder, 0, batch_size=4, records=records)


def test_the_longest_rows_of_both_sets_are_computed_and_no_more(tmp_path: Path) -> None:
    engine = Notes()
    found = run(tmp_path, engine, rows(10, 50, 20, 40, 30, 31), rows(5, 60, 7, 30))
    assert engine.rehearsed == [[50], [31, 30], [31, 30]]  # of at most 64 positions
    assert engine.scored == [[60], [60]]
    assert (found.tokens, found.peak_memory_bytes) == (62, 8)


def test_an_engine_that_records_the_second_pass_is_timed_at_the_third(tmp_path: Path) -> None:
    engine = Notes()
    run(tmp_path, engine, rows(10, 50, 20, 40, 30, 31), records=True)
    assert engine.rehearsed == [[50], [31, 30], [31, 30], [31, 30]]


def test_never_more_rows_than_meet_in_a_step(tmp_path: Path) -> None:
    engine = Notes()
    run(tmp_path, engine, rows(*[3] * 9))
    assert engine.rehearsed == [[3] * 4] * 3


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=30),
    batch_size=st.integers(1, 8),
    seed=st.integers(0, 9),
)
def test_no_step_of_any_order_has_a_larger_micro_batch(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    """Beyond the budget there are only rows by themselves, of which the longest is tried."""
    tried = [
        len(chosen) * int(np.array(lengths)[chosen].max())
        for chosen in (
            _first(np.array(lengths), batch_size, 64),
            _largest(np.array(lengths), batch_size, 64),
        )
    ]
    order = np.random.default_rng(seed).permutation(lengths).tolist()
    for at in range(0, len(order), batch_size):
        step = order[at : at + batch_size]
        for group in micro_batches(step, budget=64):
            assert len(group) * max(step[i] for i in group) <= max(tried)


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=30),
    batch_size=st.integers(1, 8),
    seed=st.integers(0, 9),
)
def test_next_to_no_step_of_any_order_packs_more(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    """What fits best of all is a puzzle of its own; what is tried comes near."""
    lengths_R = np.array(lengths)
    chosen = _packed(lengths_R, batch_size, 64)
    tried = int(lengths_R[chosen].sum())
    assert len(set(chosen.tolist())) == len(chosen) <= batch_size
    assert tried <= 64 or len(chosen) == 1
    order = np.random.default_rng(seed).permutation(lengths_R)
    for at in range(0, len(order), batch_size):
        step = order[at : at + batch_size]
        for group in micro_batches(step.tolist(), budget=64, layout=PACKED):
            assert 0.8 * step[group].sum() <= tried


def test_packed_rows_are_tried_once_and_timed_once(tmp_path: Path) -> None:
    engine = Notes(layout=PACKED)
    run(tmp_path, engine, rows(10, 40, 20, 32, 32, 31), rows(5, 60, 7, 30))
    assert engine.rehearsed == [[32, 32]] * 2
    assert engine.scored == [[60]]


def test_a_row_that_does_not_fit_is_found_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"train.jsonl:2 alone does not fit, a row of 900"):
        run(tmp_path, Notes(room=500), rows(10, 900, 20))
    with pytest.raises(OutOfMemoryError, match=r"eval.jsonl:3 alone does not fit, a row of 901"):
        run(tmp_path, Notes(room=500), rows(10), rows(1, 2, 901))


def test_a_budget_that_was_too_large_is_recorded(tmp_path: Path) -> None:
    run(tmp_path, Notes(tight=True), rows(10))
    assert list(read_events(tmp_path / "metrics.jsonl")) == [
        MemoryEvent(step=0, micro_batch_tokens=32)
    ]
