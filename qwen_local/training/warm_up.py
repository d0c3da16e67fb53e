"""The longest rows first: what memory does not hold is found before step 1, not at hour six."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qwen_local.backends.base import Backend
from qwen_local.rows.rows import AnyRows, Rows
from qwen_local.runs.events import Metrics
from qwen_local.training.loop import Data, budget_told, rows_named


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """What the largest micro-batches took."""

    seconds: float
    """Of the largest micro-batch, the second time: the first also makes what is made once."""
    tokens: int
    """Positions of it, padding among them."""
    peak_memory_bytes: int


def rehearse(
    backend: Backend, data: Data, metrics: Metrics, step: int, *, batch_size: int
) -> Rehearsal:
    """Forward and backward of the longest rows and of the largest micro-batch; a score likewise.

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

    ways = [_packed] if backend.layout.packed else [_first, _largest]

    def tried(
        rows: AnyRows, places: Sequence[str], most: int, work: Callable[[Rows], object]
    ) -> None:
        with budget_told(backend, metrics, step):
            for chosen in ways:
                indices = chosen(rows.lengths_R, most, backend.micro_batch_tokens)
                with rows_named(places, indices):
                    work(rows.take(indices))

    tried(data.train, data.train_places, batch_size, backend.warm_up)
    indices = ways[-1](data.train.lengths_R, batch_size, backend.micro_batch_tokens)
    began = time.monotonic()
    tokens = backend.warm_up(data.train.take(indices))
    took = time.monotonic() - began
    if data.evaluation is not None:
        tried(data.evaluation, data.eval_places, len(data.evaluation), backend.score)
    return Rehearsal(seconds=took, tokens=tokens, peak_memory_bytes=backend.peak_memory_bytes())


ALL_BUT_FULL = 0.98
"""Share of the budget above which no fuller micro-batch is looked for."""


def _packed(lengths_R: np.ndarray, most: int, budget: int) -> np.ndarray:
    """Rows that fill the budget, nearly the best, or the longest alone where it exceeds it.

    From each length in turn, the longest of the others that still fit are put behind it.

    >>> _packed(np.array([3, 9, 4, 8]), 3, 20).tolist(), _packed(np.array([3, 9]), 3, 5).tolist()
    ([1, 3, 0], [1])
    >>> _packed(np.array([40, 32, 32]), 3, 64).tolist()
    [1, 2]
    """
    order = np.argsort(-lengths_R, kind="stable")
    shorter_R = -lengths_R[order]  # rising, as `searchsorted` has it
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
        if filled >= ALL_BUT_FULL * budget:
            break
    return order[best]


def _first(lengths_R: np.ndarray, most: int, budget: int) -> np.ndarray:
    """The micro-batch of the longest row: rows that fill the budget beside it.

    >>> _first(np.array([3, 9, 4, 8]), 3, 20).tolist(), _first(np.array([3, 9]), 3, 5).tolist()
    ([1, 3], [1])
    """
    order = np.argsort(-lengths_R, kind="stable")[:most]
    return order[: max(1, budget // int(lengths_R[order[0]]))]


def _largest(lengths_R: np.ndarray, most: int, budget: int) -> np.ndarray:
    """The micro-batch with the most positions, padding among them, that any rows could make.

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
