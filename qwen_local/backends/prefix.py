"""How much of a conversation's cache serves its next turn."""

from __future__ import annotations

from collections.abc import Sequence

PREFILL = 2048
"""Tokens of a prompt that are computed at one time."""


def reusable(held: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens at the head of a prompt need not be computed again.

    Args:
        held: the tokens whose keys and values are kept.
        prompt: at least one token. Its last is computed in any case: what it expects is asked for.

    >>> reusable([1, 2, 3], [1, 2, 9]), reusable([1, 2, 3], [1, 2, 3]), reusable([], [1])
    (2, 2, 0)
    """
    most = min(len(held), len(prompt) - 1)
    return next((at for at in range(most) if held[at] != prompt[at]), most)
