"""The part of a conversation's cache that its next turn reuses."""

from __future__ import annotations

from collections.abc import Sequence

PREFILL = 2048
"""Tokens of a prompt computed at one time."""


def reusable(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Return the number of tokens at the start of a prompt that need not be computed again.

    Args:
        held: the tokens whose keys and values are cached.
        prompt: at least one token. The last is always recomputed because its logits are needed.

    >>> reusable([1, 2, 3], [1, 2, 9]), reusable([1, 2, 3], [1, 2, 3]), reusable([], [1])
    (2, 2, 0)
    """
    most = min(len(held), len(prompt) - 1)
    return next((at for at in range(most) if held[at] != prompt[at]), most)
