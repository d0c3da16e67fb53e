"""Rows are kept for evaluation by what they say, and by nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_local.datasets.split import FEWEST_ROWS, evaluation_rows, repeated


def digests(*contents: int) -> np.ndarray:
    hashes = [hashlib.sha256(str(content).encode()).digest()[:8] for content in contents]
    return np.array([int.from_bytes(digest) for digest in hashes], np.uint64)


contents = st.lists(st.integers(0, 60), min_size=FEWEST_ROWS, max_size=80)
fractions = st.sampled_from([0.001, 0.05, 0.5, 0.999])


@given(contents, fractions)
def test_neither_order_nor_repetition_moves_a_row(rows: list[int], fraction: float) -> None:
    chosen = evaluation_rows(digests(*rows), fraction=fraction, seed=1).tolist()
    side = dict(zip(rows, chosen, strict=True))
    again = evaluation_rows(digests(*sorted(rows)), fraction=fraction, seed=1).tolist()
    assert [side[row] for row in rows] == chosen  # equal rows are on the same side
    assert [side[row] for row in sorted(rows)] == again


@given(contents, fractions)
def test_both_sides_have_rows_unless_all_rows_are_equal(rows: list[int], fraction: float) -> None:
    chosen = evaluation_rows(digests(*rows), fraction=fraction, seed=1).tolist()
    assert (any(chosen) and not all(chosen)) == (len(set(rows)) > 1)


def test_other_rows_do_not_move_a_row() -> None:
    few = evaluation_rows(digests(*range(100)), fraction=0.3, seed=1).tolist()
    many = evaluation_rows(digests(*range(1000)), fraction=0.3, seed=1).tolist()
    assert many[:100] == few


def test_the_share_is_met_on_average() -> None:
    chosen = evaluation_rows(digests(*range(10_000)), fraction=0.05, seed=0).tolist()
    assert sum(chosen) == pytest.approx(500, abs=70)  # three standard deviations are 65


def test_another_seed_chooses_other_rows() -> None:
    rows = digests(*range(100))
    first, second = (evaluation_rows(rows, fraction=0.5, seed=seed).tolist() for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize(("rows", "fraction"), [(19, 0.5), (20, 0.0), (0, 0.5)])
def test_there_is_no_split_of_few_rows_nor_for_no_share(rows: int, fraction: float) -> None:
    assert (
        evaluation_rows(digests(*range(rows)), fraction=fraction, seed=0).tolist() == [False] * rows
    )


@pytest.mark.parametrize(
    ("weight", "rows"), [(1, 100), (2, 200), (0.25, 25), (1.5, 150), (0.001, 1)]
)
def test_a_weight_says_how_often_the_rows_of_a_source_count(weight: float, rows: int) -> None:
    chosen = repeated(digests(*range(100)), weight=weight, seed=0)
    assert len(chosen) == rows
    counts = np.bincount(chosen, minlength=100)
    assert set(counts.tolist()) <= {int(weight), -int(-weight // 1)}


def test_the_part_that_a_weight_takes_depends_on_content_alone() -> None:
    rows = digests(*range(100))
    half = {int(rows[i]) for i in repeated(rows, weight=0.5, seed=3)}
    assert {int(rows[::-1][i]) for i in repeated(rows[::-1], weight=0.5, seed=3)} == half
