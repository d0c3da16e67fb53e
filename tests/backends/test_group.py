"""Several ranks: sums cross them before anything is divided, and memory runs out on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import pytest
from mlx.utils import tree_map
from torch import Tensor

from qwen_local.backends.base import RowTooLargeError, StepResult
from qwen_local.backends.group import ALONE, Group
from qwen_local.backends.machine import Engine
from qwen_local.backends.oom_retry import TokenBudget
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import IGNORE, Targets
from tests.conftest import MakeRows, OpenEngine

T = TypeVar("T")


class Twins(Group):
    """Two ranks that do the same, of which one exists."""

    size = 2

    def sum(self, arrays: T) -> T:
        """Twice everything."""

        def twice(array: Any) -> Any:
            return array.mul_(2) if isinstance(array, Tensor) else 2 * array

        doubled: T = tree_map(twice, arrays)
        return doubled


class Threads(Group):
    """One of several ranks that are threads of this process."""

    def __init__(self, rank: int, meeting: Barrier, slots: list[Any]) -> None:
        self.rank, self.size = rank, meeting.parties
        self.meeting, self._slots = meeting, slots

    def _all(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self.meeting.wait(20)
        values = list(self._slots)
        self.meeting.wait(20)
        return values

    def sum(self, arrays: T) -> T:
        """Sums of tensors, in place."""
        gradients, loss = arrays  # type: ignore[misc]  # the engine's own structure
        mine: list[Tensor] = [*gradients, loss]  # type: ignore[has-type]
        everyone = self._all([tensor.clone() for tensor in mine])
        for at, tensor in enumerate(mine):
            tensor.copy_(sum(theirs[at] for theirs in everyone))
        return arrays

    def any_rank(self, flag: bool) -> bool:
        """True if it is True on one."""
        return any(self._all(flag))


def ranks(count: int) -> list[Threads]:
    """The groups of so many ranks."""
    meeting, slots = Barrier(count), [None] * count
    return [Threads(rank, meeting, slots) for rank in range(count)]


def on_ranks(groups: list[Threads], work: Callable[[Threads], T]) -> list[T]:
    """Results of all ranks; an error of one ends the wait of the others."""

    def one(group: Threads) -> T:
        try:
            return work(group)
        except BaseException:
            group.meeting.abort()
            raise

    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(one, groups))


def test_a_group_of_one_returns_what_it_is_given() -> None:
    arrays = [np.ones(2)]
    assert (ALONE.rank, ALONE.size, ALONE.first) == (0, 1, True)
    assert ALONE.sum(arrays) is arrays
    assert ALONE.broadcast(arrays) is arrays
    assert (ALONE.any_rank(True), ALONE.any_rank(False)) == (True, False)


def test_only_rank_0_is_the_first() -> None:
    assert on_ranks(ranks(2), lambda group: group.first) == [True, False]


def test_the_step_of_two_equal_ranks_is_that_of_one(
    engine: Engine, random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    """Twice the gradient over twice the tokens; clipped, so that the norm counts as well."""
    rows = random_rows(6)
    one = open_engine(engine, max_grad_norm=0.01)
    two = open_engine(engine, max_grad_norm=0.01, group=Twins())
    for _ in range(2):
        alone = one.step(rows, lr=1e-3, tokens=rows.supervised)
        together = two.step(rows, lr=1e-3, tokens=2 * rows.supervised)
        assert together.loss_sum == 2 * alone.loss_sum
        assert together.grad_norm == alone.grad_norm > 0.01
    for name, array in one.adapter().items():
        np.testing.assert_array_equal(two.adapter()[name], array)


def test_ranks_with_half_of_the_rows_each_take_the_step_of_one_rank_with_all(
    random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    rows = random_rows(6)
    tokens = rows.supervised
    alone, groups = open_engine("cuda"), ranks(2)
    backends = [
        open_engine("cuda", group=group) for group in groups
    ]  # transformers loads one at a time

    def steps(group: Threads) -> list[StepResult]:
        share = rows.take([0, 3, 4] if group.first else [1, 2, 5])
        return [backends[group.rank].step(share, lr=1e-3, tokens=tokens) for _ in range(3)]

    expected = [alone.step(rows, lr=1e-3, tokens=tokens) for _ in range(3)]
    first, second = on_ranks(groups, steps)
    for one, other, single in zip(first, second, expected, strict=True):
        assert (one.loss_sum, one.grad_norm) == (other.loss_sum, other.grad_norm)
        assert one.loss_sum == pytest.approx(single.loss_sum, rel=1e-6)
        assert one.grad_norm == pytest.approx(single.grad_norm, rel=1e-5)


def of_lengths(*lengths: int) -> Rows:
    return Rows.from_pairs(
        (np.ones(n, np.int32), Targets.of(np.where(np.arange(n) == n - 1, 1, IGNORE)))
        for n in lengths
    )


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError)


def test_where_memory_runs_out_on_one_rank_all_start_again_with_half_the_budget() -> None:
    """Rank 0 has one row, too large for any micro-batch but its own, and goes with the other."""

    def work(group: Threads) -> tuple[int, list[int], int]:
        budget = TokenBudget(32, ran_out=out_of_memory, group=group)
        sizes: list[int] = []

        def pass_over(batches: Iterator[Any]) -> int:
            sizes.append(0)
            for _ in batches:
                sizes[-1] += 1
                if group.rank == 1 and len(sizes) == 1 and sizes[-1] == 2:
                    raise MemoryError
            return sizes[-1]

        rows = of_lengths(40) if group.first else of_lengths(16, 16, 8, 8)
        return budget.run(rows, pass_over, free=lambda: None, most=1), sizes, budget.tokens

    assert on_ranks(ranks(2), work) == [(1, [1, 1], 16), (3, [2, 3], 16)]


def test_a_row_that_does_not_fit_is_an_error_of_its_rank() -> None:
    def work(group: Threads) -> str:
        budget = TokenBudget(32, ran_out=out_of_memory, group=group)

        def pass_over(batches: Iterator[Any]) -> None:
            next(batches)
            raise MemoryError

        try:
            budget.run(of_lengths(40), pass_over, free=lambda: None)
        except RowTooLargeError as error:
            return f"row {error.row} of {error.length}"
        return "fits"

    assert on_ranks(ranks(2), work) == ["row 0 of 40"] * 2


def test_memory_that_runs_out_after_the_exchange_is_not_tried_again() -> None:
    """The other rank has gone on to the sum."""
    budget = TokenBudget(32, ran_out=out_of_memory, group=Twins())

    def pass_over(batches: Any) -> None:
        list(batches)
        batches.join()
        raise MemoryError

    with pytest.raises(MemoryError):
        budget.run(of_lengths(8, 8), pass_over, free=lambda: None)
