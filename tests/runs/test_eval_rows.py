"""eval_rows.safetensors: complete after each evaluation, cut with the events, and bounded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from qwen_local.errors import DiskFullError
from qwen_local.runs.eval_rows import EvalRows, EvalRowsWriter, read_eval_rows

TOKENS = np.array([3, 4, 5], np.int64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "eval_rows.safetensors"


def losses(step: int) -> np.ndarray:
    return np.array([step, step + 0.25, 0.1], np.float64)


def found(path: Path) -> EvalRows:
    rows = read_eval_rows(path)
    assert rows is not None
    return rows


def steps(path: Path) -> list[int]:
    return [int(step) for step in found(path).steps_E]


def test_every_evaluation_adds_the_loss_of_each_row(path: Path) -> None:
    writer = EvalRowsWriter(path)
    for step in (0, 5, 10):
        assert writer.add(step, losses(step), TOKENS) is None
        rows = found(path)
        assert int(rows.steps_E[-1]) == step
        np.testing.assert_array_equal(rows.nll_ER[-1], losses(step).astype(np.float32))
    kinds = [array.dtype for array in (rows.steps_E, rows.nll_ER, rows.tokens_R)]
    assert kinds == [np.int32, np.float32, np.int32]
    assert rows.tokens_R.tolist() == TOKENS.tolist()
    assert (rows.nll_ER.shape, rows.dropped) == ((3, 3), 0)


def test_a_loss_that_is_not_finite_is_kept_as_it_is(path: Path) -> None:
    EvalRowsWriter(path).add(0, np.array([np.nan, np.inf, 1.0]), TOKENS)
    np.testing.assert_array_equal(found(path).nll_ER[0], np.array([np.nan, np.inf, 1], np.float32))


@pytest.mark.parametrize(
    ("evaluated", "kept"), [(10, [0, 5, 10]), (9, [0, 5]), (5, [0, 5]), (0, [0]), (None, [])]
)
def test_a_resumed_run_keeps_the_evaluations_that_its_events_keep(
    evaluated: int | None, kept: list[int], path: Path
) -> None:
    writer = EvalRowsWriter(path)
    for step in (0, 5, 10):
        writer.add(step, losses(step), TOKENS)
    resumed = EvalRowsWriter(path, evaluated=evaluated)
    assert path.exists() is bool(kept)  # before any further evaluation
    assert not kept or steps(path) == kept
    resumed.add(12, losses(12), TOKENS)
    assert steps(path) == [*kept, 12]


def test_a_full_file_keeps_the_first_evaluation_and_the_newest_and_says_so_once(
    path: Path,
) -> None:
    writer = EvalRowsWriter(path, limit=3 * 3 * 4)  # three evaluations
    problems = [writer.add(step, losses(step), TOKENS) for step in range(6)]
    full = "eval_rows.safetensors is full: it keeps the first evaluation and the newest 2"
    assert problems == [None, None, None, full, None, None]
    assert (steps(path), found(path).dropped) == ([0, 4, 5], 3)
    assert found(path).nll_ER[:, 0].tolist() == [0.0, 4.0, 5.0]
    resumed = EvalRowsWriter(path, evaluated=4, limit=3 * 3 * 4)
    assert [resumed.add(step, losses(step), TOKENS) for step in (5, 6)] == [None, None]
    assert steps(path) == [0, 5, 6]


def test_too_many_rows_for_two_evaluations_are_not_written(path: Path) -> None:
    writer = EvalRowsWriter(path, limit=2 * 3 * 4 - 1)
    problems = [writer.add(step, losses(step), TOKENS) for step in range(3)]
    few = "eval_rows.safetensors is not written: there are too many evaluation rows"
    assert problems == [few, None, None]
    assert not path.exists()


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\0" * 100])
def test_a_file_that_is_missing_or_damaged_is_none_and_starts_anew(
    content: bytes | None, path: Path
) -> None:
    if content is not None:
        path.write_bytes(content)
    assert read_eval_rows(path) is None
    EvalRowsWriter(path, evaluated=7).add(8, losses(8), TOKENS)
    assert steps(path) == [8]


def test_a_write_that_fails_leaves_the_file_before_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = EvalRowsWriter(path)
    writer.add(0, losses(0), TOKENS)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(DiskFullError):
        patched.setattr(os, "write", full)
        writer.add(5, losses(5), TOKENS)
    assert steps(path) == [0]
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    writer.add(5, losses(5), TOKENS)
    assert steps(path) == [0, 5]
