"""Cut or drop tokenized rows that are longer than the longest allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qwen_local.errors import Fault

Overlong = Literal["drop", "cut", "error"]


@dataclass(frozen=True, slots=True)
class Trim:
    """Length of a row, and how much of it is used."""

    whole: int
    """Number of tokens up to the last supervised one: what follows changes no loss."""
    kept: int
    """Number of tokens that become the row, from the first on; 0 if it is dropped."""
    dropped: str | None = None
    """Reason why it is dropped: `overlong` or `nothing_trained`."""

    @property
    def cut(self) -> bool:
        """True if supervised tokens were cut off."""
        return 0 < self.kept < self.whole


def trim(supervised: Sequence[bool], *, max_length: int, overlong: Overlong) -> Trim:
    """Decide how much of a row is used.

    Args:
        supervised: True where a token counts in the loss, shape [T].
        max_length: tokens of the longest row allowed.
        overlong: treatment of longer rows. `error` drops them as well: the caller refuses them with
            `overlong_fault`.

    >>> trim([False, True, True, False], max_length=8, overlong="drop")
    Trim(whole=3, kept=3, dropped=None)
    >>> trim([False, True, True], max_length=2, overlong="cut")
    Trim(whole=3, kept=2, dropped=None)
    >>> trim([False, True, True], max_length=2, overlong="drop")
    Trim(whole=3, kept=0, dropped='overlong')
    """
    whole = useful(supervised)
    if whole > max_length and overlong != "cut":
        return Trim(whole, 0, "overlong")
    kept = whole if whole <= max_length else useful(supervised[:max_length])
    return Trim(whole, kept, None if kept else "nothing_trained")


def useful(supervised: Sequence[bool]) -> int:
    """Count the tokens up to the last supervised one that has a token before it.

    Leaving out what follows changes no loss.

    >>> useful([False, True, True, False]), useful([True]), useful([])
    (3, 0, 0)
    """
    return next((t + 1 for t in range(len(supervised) - 1, 0, -1) if supervised[t]), 0)


def overlong_fault(where: str, length: int, max_length: int) -> Fault:
    """Return the fault of a row that is too long if `data.overlong` is `error`."""
    problem = f"expected at most {max_length} tokens (data.max_length); found {length}"
    hint = "raise data.max_length, shorten the row, or set data.overlong to drop or cut"
    return Fault(where, problem, hint)
