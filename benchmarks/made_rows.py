"""Rows of random tokens in the lengths of the workloads that are measured.

| workload | prompt | answer |
|---|---|---|
| code | 12 to 60 words and the template's tokens | lognormal, 8 to 300 words (median 65) |
| movielens | 150 to 350 words | one word |
| long | 48 tokens | the rest of 2,048 |

A word counts as a token. The end of turn is trained too, as in every conversation.
"""

from __future__ import annotations

import numpy as np

from qwen_local.rows import IGNORE, Rows

WORKLOADS = ("code", "movielens", "long")
TEMPLATE = 10
"""Tokens that a chat template puts around a prompt."""
LONGEST = 2048


def made_rows(
    workload: str, count: int, generator: np.random.Generator, *, vocabulary: int
) -> Rows:
    """Rows of one of `WORKLOADS`.

    Args:
        workload: its name.
        count: how many rows.
        generator: lengths and tokens are drawn from it.
        vocabulary: tokens are drawn from below it.
    """
    pairs = []
    for _ in range(count):
        prompt, answer = _lengths(workload, generator)
        ids = generator.integers(2, vocabulary, prompt + answer + 1, dtype=np.int32)
        targets = np.where(np.arange(prompt + answer) >= prompt, ids[1:], IGNORE)
        pairs.append((ids[:-1], targets))
    return Rows.from_pairs(pairs)


def _lengths(workload: str, generator: np.random.Generator) -> tuple[int, int]:
    """(positions before the first that predicts, positions that predict)."""
    if workload == "code":
        words = np.clip(generator.lognormal(np.log(65), 0.8), 8, 300)
        return int(generator.integers(12, 61)) + TEMPLATE - 1, int(words) + 1
    if workload == "movielens":
        return int(generator.integers(150, 351)) + TEMPLATE - 1, 2
    return 48, LONGEST - 48
