"""The planner's promises: every row once, the budget kept, the same answer every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_local.datasets.plan import epoch_order, micro_batches, padded, rounded_up
from qwen_local.rows import IGNORE, Rows

lengths = st.lists(st.integers(1, 300), max_size=60)
budgets = st.integers(1, 1000)
multiples = st.sampled_from([1, 8, 32])


@given(lengths, budgets, multiples)
def test_every_row_is_planned_once_and_within_the_budget(
    lengths: list[int], budget: int, multiple: int
) -> None:
    groups = micro_batches(lengths, budget=budget, multiple=multiple)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        width = rounded_up(max(lengths[index] for index in group), multiple)
        assert len(group) * width <= budget or len(group) == 1


@given(lengths, budgets, multiples)
def test_groups_are_filled_longest_first_and_equal_rows_keep_their_order(
    lengths: list[int], budget: int, multiple: int
) -> None:
    groups = micro_batches(lengths, budget=budget, multiple=multiple)
    order = [index for group in groups for index in group]
    assert order == sorted(order, key=lambda index: (-lengths[index], index))
    for group in groups[:-1]:  # one more row would not have fitted
        assert (len(group) + 1) * rounded_up(lengths[group[0]], multiple) > budget


@given(lengths, budgets)
def test_an_array_of_lengths_gives_the_same_plan(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, np.int64)
    assert micro_batches(array, budget=budget) == micro_batches(lengths, budget=budget)  # type: ignore[arg-type]


def test_a_row_beyond_the_budget_is_alone() -> None:
    assert micro_batches([2, 50, 2], budget=4) == [[1], [0, 2]]


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1), multiples)
def test_padding_adds_nothing_that_is_trained(rows: list[list[int]], multiple: int) -> None:
    ragged = Rows.from_pairs((ids, [i + 1 for i in ids]) for ids in rows)
    order = list(range(len(rows)))[::-1]
    ids, lengths, targets = padded(ragged, order, multiple=multiple)
    assert ids.dtype == lengths.dtype == targets.dtype == np.int32
    assert ids.shape == targets.shape
    assert ids.shape[1] == rounded_up(max(map(len, rows)), multiple)
    for b, index in enumerate(order):
        length = lengths[b]
        assert ids[b, :length].tolist() == rows[index]
        assert targets[b, :length].tolist() == [i + 1 for i in rows[index]]
        assert not ids[b, length:].any()
        assert (targets[b, length:] == IGNORE).all()


def test_an_epoch_is_a_permutation_from_seed_and_epoch_alone() -> None:
    order = epoch_order(1000, seed=3, epoch=2)
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() == epoch_order(1000, seed=3, epoch=2).tolist()
    assert order.tolist() != epoch_order(1000, seed=2, epoch=3).tolist()


@pytest.mark.parametrize("n", [0, 1])
def test_small_epochs_are_fine(n: int) -> None:
    assert epoch_order(n, seed=0, epoch=0).tolist() == list(range(n))
