"""How long the rows are that are measured: one source for rows of words and for rows of tokens.

| workload | prompt | answer |
|---|---|---|
| code-alpaca | 12 to 60 words | lognormal, 8 to 300 words, the median 65 |
| movielens | 150 to 350 words | one word |
| long | 30 words | fills a row of `LONGEST` tokens |

A word is a token.
"""

from __future__ import annotations

import random
from collections.abc import Callable

LONGEST = 2048
"""Tokens of a row."""
AROUND = 9
"""Tokens of a row that the chat template adds: two turns' marks, roles and line ends. The last of
them ends the answer, and is learned."""


def code_alpaca(draw: random.Random) -> tuple[int, int]:
    """A short question and an answer of very different lengths."""
    answer = 0
    while not 8 <= answer <= 300:
        answer = round(draw.lognormvariate(4.17, 0.8))
    return draw.randint(12, 60), answer


def movielens(draw: random.Random) -> tuple[int, int]:
    """A long question and an answer of one word."""
    return draw.randint(150, 350), 1


def long(draw: random.Random) -> tuple[int, int]:
    """A short question and an answer that fills the row."""
    return 30, LONGEST - AROUND - 30


WORKLOADS: dict[str, Callable[[random.Random], tuple[int, int]]] = {
    "code-alpaca": code_alpaca,
    "movielens": movielens,
    "long": long,
}
"""Each draws (words of the prompt, words of the answer)."""
