"""Summed losses per row: what an engine returns for rows that it evaluates.

Shapes: R = rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from qwen_local.rows.micro_batch import MicroBatch


@dataclass(frozen=True, slots=True)
class Scores:
    """Summed loss and supervised tokens of each row. Sums, because a mean of means is no mean."""

    nll_R: np.ndarray
    """float64 [R]: sum of negative log-likelihoods in nats."""
    tokens_R: np.ndarray
    """int64 [R]: number of supervised tokens."""

    @property
    def mean(self) -> float:
        """Mean over all supervised tokens of all rows."""
        return float(self.nll_R.sum() / self.tokens_R.sum())


def scores(
    rows: int, batches: Iterable[MicroBatch], losses: Callable[[MicroBatch], np.ndarray]
) -> Scores:
    """Sum the losses of each row.

    Args:
        rows: number of rows.
        batches: micro-batches that hold each of them once.
        losses: returns the loss at each supervised position of a micro-batch, [N].
    """
    nll_R = np.zeros(rows, np.float64)
    tokens_R = np.zeros(rows, np.int64)
    for batch in batches:
        np.add.at(nll_R, batch.rows_N, losses(batch).astype(np.float64))
        np.add.at(tokens_R, batch.rows_N, 1)
    return Scores(nll_R, tokens_R)
