"""Scoring rows with an engine that computes (w - y)^2 for a row with the single target y."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest

from qwen_local.backends.base import Backend, RowTooLargeError
from qwen_local.errors import OutOfMemoryError
from qwen_local.evaluation.scoring import ROWS_PER_CALL, score, watching_budget
from qwen_local.rows.rows import Rows
from qwen_local.rows.scores import Scores
from qwen_local.rows.targets import Targets


class Squares:
    """The engine as far as scoring uses it; w is 0."""

    def __init__(self) -> None:
        self.micro_batch_tokens = 64
        self.calls: list[int] = []

    def score(self, rows: Rows) -> Scores:
        self.calls.append(len(rows))
        return Scores(rows.targets.ids_T.astype(np.float64) ** 2, rows.lengths_R)


class Full(Squares):
    """Memory does not hold the row with this target."""

    TARGET = ROWS_PER_CALL + 7

    def score(self, rows: Rows) -> Scores:
        if self.TARGET in rows.targets.ids_T:
            raise RowTooLargeError(rows.targets.ids_T.tolist().index(self.TARGET), 99)
        return super().score(rows)


def rows(count: int) -> Rows:
    return Rows.from_pairs(([1], Targets.of([y])) for y in range(count))


def test_all_rows_are_scored_and_only_some_are_in_memory_at_a_time() -> None:
    engine, given = Squares(), rows(2 * ROWS_PER_CALL + 1)
    found = score(cast(Backend, engine), given, ["eval.jsonl:1"] * len(given))
    assert engine.calls == [ROWS_PER_CALL, ROWS_PER_CALL, 1]
    whole = Squares().score(given)
    np.testing.assert_array_equal(found.nll_R, whole.nll_R)
    np.testing.assert_array_equal(found.tokens_R, whole.tokens_R)


@pytest.mark.parametrize(
    ("hint", "end"), [(None, ""), ("buy memory", "\n\nhint: buy memory")], ids=["none", "a hint"]
)
def test_a_row_that_memory_does_not_hold_is_named_with_the_hint_of_the_caller(
    hint: str | None, end: str
) -> None:
    given = rows(2 * ROWS_PER_CALL)
    with pytest.raises(OutOfMemoryError) as raised:
        score(
            cast(Backend, Full()), given, [f"eval.jsonl:{r}" for r in range(len(given))], hint=hint
        )
    assert str(raised.value) == (
        f"out of memory: eval.jsonl:{Full.TARGET} alone does not fit, a row of 99 tokens{end}"
    )


@pytest.mark.parametrize(("budget", "reported"), [(64, []), (32, [32])])
def test_only_a_budget_that_changed_is_reported(budget: int, reported: list[int]) -> None:
    engine, found = Squares(), list[int]()
    report: Callable[[int], None] = found.append
    with watching_budget(cast(Backend, engine), report):
        engine.micro_batch_tokens = budget
    assert found == reported
