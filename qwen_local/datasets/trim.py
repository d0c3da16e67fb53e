"""What of a tokenized row is kept, given the longest length allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qwen_local.errors import Fault

Overlong = Literal["drop", "cut", "error"]


@dataclass(frozen=True, slots=True)
class Trim:
    """How long a row is and how much of it is used."""

    whole: int
    """Tokens up to the last one that is trained: what follows teaches nothing."""
    kept: int
    """The first so many tokens are the row; 0 where there is none."""
    dropped: str | None = None
    """Why there is none: `overlong` or `nothing_trained`."""

    @property
    def cut(self) -> bool:
        """Whether a part of the row is missing that would have been learned."""
        return 0 < self.kept < self.whole


def trim(trained: Sequence[bool], *, max_length: int, overlong: Overlong) -> Trim:
    """What of a row is kept.

    Args:
        trained: shape [T], whether each token is to be learned.
        max_length: tokens of the longest row allowed.
        overlong: what becomes of longer ones. Where that is `error` they are dropped, too: it is
            for the caller to refuse them, with `overlong_fault`.

    >>> trim([False, True, True, False], max_length=8, overlong="drop")
    Trim(whole=3, kept=3, dropped=None)
    >>> trim([False, True, True], max_length=2, overlong="cut")
    Trim(whole=3, kept=2, dropped=None)
    >>> trim([False, True, True], max_length=2, overlong="drop")
    Trim(whole=3, kept=0, dropped='overlong')
    """
    whole = useful(trained)
    if whole > max_length and overlong != "cut":
        return Trim(whole, 0, "overlong")
    kept = whole if whole <= max_length else useful(trained[:max_length])
    return Trim(whole, kept, None if kept else "nothing_trained")


def useful(trained: Sequence[bool]) -> int:
    """How many tokens it takes to hold the last trained one that has a token before it.

    What follows teaches nothing, so leaving it out changes no loss.

    >>> useful([False, True, True, False]), useful([True]), useful([])
    (3, 0, 0)
    """
    return next((t + 1 for t in range(len(trained) - 1, 0, -1) if trained[t]), 0)


def overlong_fault(where: str, length: int, max_length: int) -> Fault:
    """The fault of a row that is too long where `data.overlong` is `error`."""
    problem = f"expected at most {max_length} tokens (data.max_length); found {length}"
    hint = "raise data.max_length, shorten the row, or set data.overlong to drop or cut"
    return Fault(where, problem, hint)
