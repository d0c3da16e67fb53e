"""Warm-up: compute the longest rows first, so that memory runs out before step 1, not in hour six.

Shapes: R = rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from qwen_local.backends.base import Backend
from qwen_local.evaluation.scoring import naming_rows, watching_budget
from qwen_local.rows.rows import AnyRows, Rows
from qwen_local.training.loop import MEMORY_HINT, Data
from qwen_local.training.recorder import Recorder

T = TypeVar("T")
Choose = Callable[[np.ndarray, int, int], np.ndarray]
"""(lengths_R, most rows, budget) -> indices of the rows of a micro-batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """Cost of the largest micro-batches."""

    seconds: float
    """Time of the largest micro-batch, computed a second time: the first one also compiles and
    allocates."""
    tokens: int
    """Its positions, with padding."""
    peak_memory_bytes: int


def warm_up(
    backend: Backend,
    data: Data,
    recorder: Recorder,
    step: int,
    *,
    batch_size: int,
    records: bool = False,
) -> WarmUp:
    """Compute forward and backward of the longest rows and of the largest micro-batch; score both.

    Nothing is updated. If memory runs out, the engine halves its budget, as in a step.

    Args:
        backend: the engine.
        data: all rows.
        recorder: gets a smaller budget.
        step: optimizer steps done.
        batch_size: most rows in a step.
        records: the engine records a pass when its shape comes a second time, and is timed at the
            third.

    Raises:
        OutOfMemoryError: memory does not hold the longest row.
    """
    choices: list[Choose] = [_packed] if backend.layout.packed else [_first, _largest]
    tokens, seconds = 0, 0.0

    def compute(
        rows: AnyRows, places: Sequence[str], most: int, choose: Choose, work: Callable[[Rows], T]
    ) -> T:
        with watching_budget(backend, partial(recorder.budget_halved, step)):
            indices = choose(rows.lengths_R, most, backend.micro_batch_tokens)
            with naming_rows(places, indices, hint=MEMORY_HINT):
                return work(rows.take(indices))

    for choose in (*choices, *[choices[-1]] * (2 if records else 1)):
        started = time.monotonic()
        tokens = compute(data.train, data.train_places, batch_size, choose, backend.warm_up)
        seconds = time.monotonic() - started
    if (rows := data.evaluation) is not None:
        for choose in choices:
            compute(rows, data.eval_places, len(rows), choose, backend.score)
    return WarmUp(seconds=seconds, tokens=tokens, peak_memory_bytes=backend.peak_memory_bytes())


NEARLY_FULL = 0.98
"""Share of the budget above which the search for a fuller micro-batch ends."""


def _packed(lengths_R: np.ndarray, most: int, budget: int) -> np.ndarray:
    """Choose rows that nearly fill the budget, or the longest row alone if it exceeds the budget.

    Greedy: for each length as the first, add the longest of the other rows that still fit.

    >>> _packed(np.array([3, 9, 4, 8]), 3, 20).tolist(), _packed(np.array([3, 9]), 3, 5).tolist()
    ([1, 3, 0], [1])
    >>> _packed(np.array([40, 32, 32]), 3, 64).tolist()
    [1, 2]
    """
    order = np.argsort(-lengths_R, kind="stable")
    shorter_R = -lengths_R[order]  # rising, as `searchsorted` needs it
    if -shorter_R[0] > budget:
        return order[:1]
    if -shorter_R[:most].sum() <= budget:
        return order[:most]
    best: list[int] = []
    filled = 0
    for start in np.unique(shorter_R, return_index=True)[1].tolist():
        chosen, left = [start], budget + int(shorter_R[start])
        while len(chosen) < most:
            following = max(chosen[-1] + 1, int(np.searchsorted(shorter_R, -left)))
            if following == len(order):
                break
            chosen.append(following)
            left += int(shorter_R[following])
        if budget - left > filled:
            best, filled = chosen, budget - left
        if filled >= NEARLY_FULL * budget:
            break
    return order[best]


def _first(lengths_R: np.ndarray, most: int, budget: int) -> np.ndarray:
    """Choose the longest row, and rows that fill the rest of the budget.

    >>> _first(np.array([3, 9, 4, 8]), 3, 20).tolist(), _first(np.array([3, 9]), 3, 5).tolist()
    ([1, 3], [1])
    """
    order = np.argsort(-lengths_R, kind="stable")[:most]
    return order[: max(1, budget // int(lengths_R[order[0]]))]


def _largest(lengths_R: np.ndarray, most: int, budget: int) -> np.ndarray:
    """Choose the rows whose micro-batch has the most positions, with padding.

    >>> _largest(np.array([1100, 1000, 990, 5]), 3, 2048).tolist()
    [1, 2]
    """
    order = np.argsort(-lengths_R, kind="stable")
    best = order[:1]
    for count in range(2, min(most, len(order), budget // int(lengths_R.min())) + 1):
        rows = order[lengths_R[order] <= budget // count][:count]
        if len(rows) and len(rows) * lengths_R[rows[0]] > len(best) * lengths_R[best[0]]:
            best = rows
    return best
