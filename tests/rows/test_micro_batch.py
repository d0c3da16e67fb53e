"""Rows cut into the micro-batches of a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_local.rows.micro_batch import cut
from qwen_local.rows.planner import PACKED, Layout, widths_of
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import IGNORE, Targets

N = IGNORE


def hard(*ids: int) -> Targets:
    return Targets.of(ids)


def test_supervised_positions_are_found_again_in_the_flattened_rectangle() -> None:
    rows = Rows.from_pairs([([1, 2], hard(N, 3)), ([4, 5, 6], hard(5, N, 7))])
    (batch,) = cut(rows, budget=6)
    assert batch.ids_BW.tolist() == [[4, 5, 6], [1, 2, 0]]  # the longest row first
    assert batch.positions_N.tolist() == [0, 2, 4]
    assert batch.targets.ids_T.tolist() == [5, 7, 3]
    assert batch.rows_N.tolist() == [1, 1, 0]


def test_a_budget_cuts_and_a_row_beyond_it_stands_alone() -> None:
    rows = Rows.from_pairs(([1] * n, Targets.of([1] * n)) for n in (9, 4, 4, 3))
    batches = list(cut(rows, budget=8))
    assert [batch.ids_BW.shape for batch in batches] == [(1, 9), (2, 4), (1, 3)]
    assert [sorted(set(batch.rows_N.tolist())) for batch in batches] == [[0], [1, 2], [3]]


def test_widths_are_rounded_up_and_padding_is_not_supervised() -> None:
    rows = Rows.from_pairs([([1, 2, 3], hard(2, 3, 4))])
    (batch,) = cut(rows, budget=100, layout=Layout((4,)))
    assert batch.ids_BW.tolist() == [[1, 2, 3, 0]]
    assert batch.positions_N.tolist() == [0, 1, 2]


def test_packed_rows_lie_one_behind_the_other() -> None:
    rows = Rows.from_pairs([([1, 2], hard(N, 3)), ([4, 5, 6], hard(5, N, 7)), ([8], hard(9))])
    first, second = cut(rows, budget=5, layout=PACKED)
    assert first.ids_BW.tolist() == [[4, 5, 6, 1, 2]]
    assert first.lengths == (3, 2)
    assert first.positions_N.tolist() == [0, 2, 4]
    assert first.targets.ids_T.tolist() == [5, 7, 3]
    assert first.rows_N.tolist() == [1, 1, 0]
    assert (second.ids_BW.tolist(), second.rows_N.tolist()) == ([[8]], [2])


def test_types_are_those_that_both_engines_take() -> None:
    (batch,) = cut(Rows.from_pairs([([1], hard(2))]), budget=1)
    arrays = (batch.ids_BW, batch.positions_N, batch.targets.ids_T, batch.rows_N)
    assert [array.dtype for array in arrays] == [np.int32, np.int64, np.int32, np.int64]


POSITION = st.tuples(st.integers(1, 50), st.integers(1, 50) | st.just(N))


@pytest.mark.slow
@given(
    rows=st.lists(st.lists(POSITION, min_size=1, max_size=12), max_size=9),
    budget=st.integers(1, 40),
    layout=st.sampled_from([Layout(), Layout((4, 8, 12)), PACKED]),
)
def test_every_supervised_position_is_there_once_with_its_token_and_target(
    rows: list[list[tuple[int, int]]], budget: int, layout: Layout
) -> None:
    ragged = Rows.from_pairs(([i for i, _ in row], hard(*(t for _, t in row))) for row in rows)
    found = []
    for batch in cut(ragged, budget=budget, layout=layout):
        height, width = batch.ids_BW.shape
        assert height * width <= budget or len(batch.lengths) == 1
        assert layout.positions(np.array(batch.lengths)) == height * width
        tokens = batch.ids_BW.reshape(-1)[batch.positions_N]
        found += list(zip(batch.rows_N.tolist(), tokens, batch.targets.ids_T.tolist(), strict=True))
    wanted = [(r, i, t) for r, row in enumerate(rows) for i, t in row if t != N]
    assert sorted(found) == sorted(wanted)


@given(
    rows=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1),
    widths=st.sampled_from([(), (16, 64, 320), (8, 40)]),
)
def test_padding_adds_zeros_behind_each_row_and_nothing_that_is_supervised(
    rows: list[list[int]], widths: tuple[int, ...]
) -> None:
    ragged = Rows.from_pairs((ids, hard(*(i + 1 for i in ids))) for ids in rows)
    for batch in cut(ragged, budget=10**6, layout=Layout(widths)):
        assert batch.ids_BW.dtype == np.int32
        width = widths_of(np.array([max(batch.lengths)]), widths).item()
        assert batch.ids_BW.shape == (len(batch.lengths), width)
        chosen = list(dict.fromkeys(batch.rows_N.tolist()))
        for ids, length, index in zip(batch.ids_BW, batch.lengths, chosen, strict=True):
            assert ids[:length].tolist() == rows[index]
            assert not ids[length:].any()
        assert batch.targets.ids_T.tolist() == [i + 1 for index in chosen for i in rows[index]]
