"""Every tool goes through its file in an order of its own. The file of each is laid out so that all
of them train on the same rows at the same step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Row = TypeVar("Row")


def placed(rows: Sequence[Row], order: Sequence[int]) -> list[Row]:
    """A file that yields `rows` one after another to a tool that reads it in `order`.

    >>> file = placed(["first", "second", "third"], [2, 0, 1])
    >>> file, [file[i] for i in [2, 0, 1]]
    (['second', 'third', 'first'], ['first', 'second', 'third'])
    """
    at = {place: row for row, place in zip(rows, order, strict=True)}
    return [at[i] for i in range(len(rows))]


def reading_order(side: str, rows: int, *, batch_size: int, seed: int) -> list[int]:
    """Which rows of its file a tool trains on, one after another, in its first epoch.

    Args:
        side: a tool.
        rows: of the file, whole batches.
        batch_size: rows of a step.
        seed: of the tool.
    """
    if side.startswith("ours"):
        from qwen_local.rows.planner import epoch_order

        return [int(i) for i in epoch_order(rows, seed=seed, epoch=0)]
    if side == "mlx-lm":
        # Batches are cut from the file as it stands, for its sort by length compares the number of
        # keys of a row (mlx-lm 0.32.2); their order is numpy's, seeded when it begins.
        batches = np.random.RandomState(seed).permutation(rows // batch_size)
        return [int(b) * batch_size + i for b in batches for i in range(batch_size)]
    return list(range(rows))
