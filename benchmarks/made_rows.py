"""Rows of random tokens in the lengths of the workloads that are measured."""

from __future__ import annotations

import random

import numpy as np

from benchmarks.lengths import AROUND, WORKLOADS
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import IGNORE, Targets


def made_rows(
    workload: str, count: int, generator: np.random.Generator, *, vocabulary: int
) -> Rows:
    """Rows of a workload, as the engine gets them: the answer and the end of its turn are trained.

    Args:
        workload: one of `benchmarks.lengths.WORKLOADS`.
        count: how many rows.
        generator: lengths and tokens follow from it.
        vocabulary: tokens are drawn from below it.
    """
    draw = random.Random(int(generator.integers(2**32)))
    pairs = []
    for _ in range(count):
        prompt, answer = WORKLOADS[workload](draw)
        ids = generator.integers(2, vocabulary, prompt + AROUND + answer, dtype=np.int32)
        learned = np.arange(1, len(ids)) >= prompt + AROUND - 1
        pairs.append((ids[:-1], Targets.of(np.where(learned, ids[1:], IGNORE))))
    return Rows.from_pairs(pairs)


def made_batches(tokens: int, count: int, *, vocabulary: int) -> list[Rows]:
    """Make batches of code-like rows.

    Args:
        tokens: of a batch: rows are drawn as long as they stay below.
        count: how many batches.
        vocabulary: see `made_rows`.
    """
    generator = np.random.default_rng(tokens)
    batches = []
    for _ in range(count):
        rows = made_rows("code-alpaca", max(1, tokens // 20), generator, vocabulary=vocabulary)
        whole = int(np.searchsorted(np.cumsum(rows.lengths_R), tokens, side="right"))
        batches.append(rows.take(range(max(1, whole))))
    return batches
