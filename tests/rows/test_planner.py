"""The planner's promises: every row once, the budget kept, the same answer every time."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_local.rows.planner import (
    ONE_MORE,
    SIZES,
    Layout,
    choose_widths,
    epoch_order,
    micro_batches,
    widths_of,
)

lengths = st.lists(st.integers(1, 300), max_size=60)
budgets = st.integers(1, 1000)
several_widths = st.sampled_from([(), (16, 64, 320), (8, 40)])


@given(lengths, budgets, several_widths)
def test_every_row_is_planned_once_and_within_the_budget(
    lengths: list[int], budget: int, widths: tuple[int, ...]
) -> None:
    groups = micro_batches(lengths, budget=budget, layout=Layout(widths))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        width = widths_of(np.array([max(lengths[index] for index in group)]), widths).item()
        assert len(group) * width <= budget or len(group) == 1
        assert not widths or len(group) in SIZES


@given(lengths, budgets, several_widths)
def test_the_longest_come_first_and_equal_rows_keep_their_order(
    lengths: list[int], budget: int, widths: tuple[int, ...]
) -> None:
    groups = micro_batches(lengths, budget=budget, layout=Layout(widths))
    order = [index for group in groups for index in group]
    assert order == sorted(order, key=lambda index: (-lengths[index], index))


def cost(lengths: list[int], counts: list[int]) -> int:
    """Of groups with so many rows each, of rows that are sorted."""
    starts = np.cumsum([0, *counts])
    return sum(ONE_MORE + n * lengths[start] for n, start in zip(counts, starts, strict=False))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=7), st.integers(1, 2000))
def test_no_other_way_to_cut_the_sorted_rows_costs_less(lengths: list[int], budget: int) -> None:
    lengths.sort(reverse=True)
    ours = [len(group) for group in micro_batches(lengths, budget=budget)]
    for cuts in product([False, True], repeat=len(lengths) - 1):
        ends = [0, *(i + 1 for i, here in enumerate(cuts) if here), len(lengths)]
        counts = np.diff(ends).tolist()
        first = [lengths[start] for start in ends[:-1]]
        if all(n == 1 or n * width <= budget for n, width in zip(counts, first, strict=True)):
            assert cost(lengths, ours) <= cost(lengths, counts)


@given(lengths, budgets)
def test_there_are_no_more_groups_than_eight_or_than_memory_asks_for(
    lengths: list[int], budget: int
) -> None:
    full, start, ordered = 0, 0, sorted(lengths, reverse=True)
    while start < len(ordered):
        start, full = start + max(1, budget // ordered[start]), full + 1
    assert len(micro_batches(lengths, budget=budget)) <= max(8, full)


@given(lengths, budgets)
def test_an_array_of_lengths_gives_the_same_plan(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, np.int64)
    assert micro_batches(array, budget=budget) == micro_batches(lengths, budget=budget)  # type: ignore[arg-type]


def test_many_rows_are_cut_into_full_groups() -> None:
    rows = np.random.default_rng(0).integers(1, 200, 1000).tolist()
    groups = micro_batches(rows, budget=2000)
    for group in groups[:-1]:  # one more row would not have fitted
        assert (len(group) + 1) * rows[group[0]] > 2000


def lognormal(rows: int) -> np.ndarray:
    """Lengths of median 120 and sigma 0.8, as of chat data."""
    drawn = np.random.default_rng(0).lognormal(np.log(120), 0.8, rows)
    return np.clip(drawn.round(), 1, 2048).astype(np.int64)


def waste(batch: int, widths: tuple[int, ...]) -> float:
    """The share of positions that are padding, over 300 steps without a limit of memory."""
    every, used, computed = lognormal(20_000), 0, 0
    generator = np.random.default_rng(1)
    for _ in range(300):
        rows = generator.choice(every, batch)
        groups = micro_batches(rows.tolist(), budget=10**9, layout=Layout(widths))
        assert len(groups) <= 8
        used += int(rows.sum())
        for group in groups:
            width = widths_of(np.array([rows[group[0]]]), widths).item()
            computed += len(group) * width
    return 1 - used / computed


@pytest.mark.parametrize(
    ("batch", "few", "most"),
    [(32, False, 0.08), (8, False, 0.06), (32, True, 0.15), (8, True, 0.15)],
)
def test_little_of_what_is_computed_is_padding(batch: int, few: bool, most: float) -> None:
    widths = choose_widths(lognormal(20_000)) if few else ()
    assert waste(batch, widths) <= most


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=300))
def test_the_widths_chosen_are_few_and_hold_every_row(lengths: list[int]) -> None:
    widths = choose_widths(np.array(lengths))
    assert len(widths) <= 16
    assert list(widths) == sorted(set(widths))
    assert widths[-1] >= max(lengths)


def test_a_row_beyond_the_budget_is_alone() -> None:
    assert micro_batches([2, 50, 2], budget=4) == [[1], [0, 2]]


def test_an_epoch_is_a_permutation_from_seed_and_epoch_alone() -> None:
    order = epoch_order(1000, seed=3, epoch=2)
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() == epoch_order(1000, seed=3, epoch=2).tolist()
    assert order.tolist() != epoch_order(1000, seed=2, epoch=3).tolist()


@pytest.mark.parametrize("n", [0, 1])
def test_small_epochs_are_fine(n: int) -> None:
    assert epoch_order(n, seed=0, epoch=0).tolist() == list(range(n))
