"""Draws: fair, the same on every machine, and blind to the order of a file."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen_local.recipes.subset import draw, draws, held_out, smallest


def test_draws_of_columns_are_splitmix64() -> None:
    """Its first output from state 0 is published everywhere: 0xE220A8397B1DCDAF."""
    state = np.array([0x9E3779B97F4A7C15], np.uint64)  # the golden ratio: what a step adds
    moved = state - np.uint64(draw(7, "splitmix64"))
    assert [hex(drawn) for drawn in draws(7, moved).tolist()] == ["0xe220a8397b1dcdaf"]


def test_draws_are_the_same_on_every_machine() -> None:
    assert draw(0, "text") == 0x14DAE59A542D9880
    assert draws(0, np.array([0, 1], np.int32)).tolist() == [
        *(8824456905974773551, 10572036311871415493)
    ]


def test_different_numbers_have_different_draws_that_are_spread_evenly() -> None:
    drawn = draws(3, np.arange(200_000))
    assert len(np.unique(drawn)) == 200_000
    shares = np.bincount((drawn >> np.uint64(60)).astype(int), minlength=16) / 200_000
    assert np.abs(shares - 1 / 16).max() < 0.003


@given(st.lists(st.integers(0, 2**64 - 1), unique=True), st.integers(0, 20))
def test_the_smallest_draws_are_found(drawn: list[int], size: int) -> None:
    array = np.array(drawn, np.uint64)
    assert sorted(array[smallest(array, size)].tolist()) == sorted(drawn)[:size]


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 4), min_size=1), st.floats(0, 0.99))
def test_questions_held_out_come_to_the_share_and_never_to_all(
    rows: dict[str, int], fraction: float
) -> None:
    held = held_out(rows, fraction=fraction, seed=0)
    wanted = min(round(fraction * sum(rows.values())), sum(rows.values()) - 1)
    assert sum(rows[question] for question in held) <= wanted
    if set(rows.values()) == {1}:
        assert len(held) == wanted
    assert held_out(dict(reversed(rows.items())), fraction=fraction, seed=0) == held
