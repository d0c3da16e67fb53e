"""Loss of rows on an engine, a part of them at a time, with errors that name the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from qwen_local.backends.base import Backend, RowTooLargeError
from qwen_local.errors import OutOfMemoryError
from qwen_local.rows.rows import AnyRows
from qwen_local.rows.scores import Scores

ROWS_PER_CALL = 1024
"""Rows in memory at one time, and the most that are repeated if memory runs out."""


def score(
    backend: Backend, rows: AnyRows, places: Sequence[str], *, hint: str | None = None
) -> Scores:
    """Score all rows, of which only `ROWS_PER_CALL` are in memory at a time.

    Args:
        backend: the engine.
        rows: at least one row, each with supervised tokens.
        places: source of each row, for errors.
        hint: fix to print if memory does not hold a single row.

    Raises:
        OutOfMemoryError: memory does not hold a single row.
    """
    parts = []
    for start in range(0, len(rows), ROWS_PER_CALL):
        some = range(start, min(start + ROWS_PER_CALL, len(rows)))
        with naming_rows(places, some, hint=hint):
            parts.append(backend.score(rows.take(some)))
    return Scores(
        nll_R=np.concatenate([part.nll_R for part in parts]),
        tokens_R=np.concatenate([part.tokens_R for part in parts]),
    )


@contextmanager
def naming_rows(
    places: Sequence[str], rows: Sequence[int] | np.ndarray, *, hint: str | None = None
) -> Iterator[None]:
    """Make an out-of-memory error within the `with` name the source of the row.

    Args:
        places: source of every row.
        rows: indices of the rows that the engine gets within the `with`.
        hint: fix to print with the error.

    Raises:
        OutOfMemoryError: memory does not hold a single row.
    """
    try:
        yield
    except RowTooLargeError as error:
        place = places[rows[error.row]]
        problem = f"out of memory: {place} alone does not fit, a row of {error.length:,} tokens"
        fix = "" if hint is None else f"\n\nhint: {hint}"
        raise OutOfMemoryError(f"{problem}{fix}") from None


@contextmanager
def watching_budget(backend: Backend, report: Callable[[int], None]) -> Iterator[None]:
    """Report if the engine ran out of memory within the `with` and continued with a smaller budget.

    Args:
        backend: the engine.
        report: called at the end with the new budget in positions, if it has changed.
    """
    before = backend.micro_batch_tokens
    yield
    if backend.micro_batch_tokens != before:
        report(backend.micro_batch_tokens)
