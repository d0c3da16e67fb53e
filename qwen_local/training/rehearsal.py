"""The longest rows first: what memory does not hold is found before step 1, not at hour six."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from qwen_local.backends.base import Backend
from qwen_local.rows import Rows
from qwen_local.training.loop import Data, budget_told, rows_named
from qwen_local.training.metrics import Metrics

MICRO_BATCHES = 2
"""Full ones that are tried; the first step has what goes beyond."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """What the largest micro-batches took."""

    seconds: float
    """Of a second pass: the first also makes what is made once."""
    tokens: int
    """Input positions of it."""
    peak_memory_bytes: int


def rehearse(
    backend: Backend, data: Data, metrics: Metrics, step: int, *, batch_size: int
) -> Rehearsal:
    """Forward and backward of the longest rows, and a score of the longest to evaluate on.

    Nothing is updated. Where memory runs out the engine's budget is halved, as in a step.

    Args:
        backend: the engine.
        data: all rows.
        metrics: where a smaller budget is noted.
        step: optimizer steps done.
        batch_size: the most rows that meet in a step.

    Raises:
        OutOfMemoryError: memory does not hold the longest row.
    """
    longest = _longest(data.train, batch_size, MICRO_BATCHES * backend.micro_batch_tokens)
    rows, places = data.train.take(longest), [data.train_places[i] for i in longest]
    with budget_told(backend, metrics, step), rows_named(places):
        backend.rehearse(rows)
        began = time.monotonic()
        backend.rehearse(rows)
        took = time.monotonic() - began
    tokens = rows.tokens
    if data.evaluation is not None:
        longest = _longest(data.evaluation, len(data.evaluation), backend.micro_batch_tokens)
        rows, places = data.evaluation.take(longest), [data.eval_places[i] for i in longest]
        with budget_told(backend, metrics, step), rows_named(places):
            backend.score(rows)
    return Rehearsal(seconds=took, tokens=tokens, peak_memory_bytes=backend.peak_memory_bytes())


def _longest(rows: Rows, most: int, positions: int) -> np.ndarray:
    """The longest rows: at most so many, and no more than fill these positions; at least one.

    >>> rows = Rows.from_pairs([([1] * n, [1] * n) for n in (3, 9, 4, 8)])
    >>> [_longest(rows, most, fill).tolist() for most, fill in ((3, 20), (2, 99), (3, 5))]
    [[1, 3], [1, 3], [1]]
    """
    order = np.argsort(-rows.lengths_R, kind="stable")[:most]
    fit = np.cumsum(rows.lengths_R[order]) <= positions
    return order[: max(1, int(fit.sum()))]
