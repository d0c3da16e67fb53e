"""Tokenized rows: the type that crosses the seam between the data, the loop and the engines.

Shapes: R = rows, T = positions of all rows together, one row after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

IGNORE = -100
"""The target of a position that is not trained (the value that PyTorch and PEFT use)."""


Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Ragged rows of token ids with their next-token targets.

    Position t of a row holds the t-th token and, as its target, token t + 1 where that one is
    trained and `IGNORE` where it is not. The last token of a conversation is therefore only a
    target, never an input.
    """

    ids_T: np.ndarray
    """int32 [T]: input tokens."""
    targets_T: np.ndarray
    """int32 [T]: the next token, or IGNORE."""
    offsets: np.ndarray
    """int64 [R + 1]: row r is positions offsets[r] to offsets[r + 1]."""

    @classmethod
    def from_pairs(cls, rows: Iterable[tuple[Ids, Ids]]) -> Rows:
        """Rows from (ids, targets) pairs, each pair of one length."""
        pairs = [(np.asarray(i, np.int32), np.asarray(t, np.int32)) for i, t in rows]
        assert all(len(i) == len(t) for i, t in pairs)
        empty = np.zeros(0, np.int32)
        return cls(
            ids_T=np.concatenate([empty, *(i for i, _ in pairs)]),
            targets_T=np.concatenate([empty, *(t for _, t in pairs)]),
            offsets=np.cumsum([0, *(len(i) for i, _ in pairs)], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths_R(self) -> np.ndarray:
        """int64 [R]: positions of each row."""
        return np.diff(self.offsets)

    @property
    def tokens(self) -> int:
        """Input positions of all rows."""
        return int(self.offsets[-1])

    @property
    def supervised(self) -> int:
        """Positions of all rows that are trained."""
        return int(np.count_nonzero(self.targets_T != IGNORE))

    @property
    def sha256(self) -> str:
        """Of all that is in them, in hex; the same on every machine."""
        digest = hashlib.sha256()
        for array, kind in ((self.ids_T, "<i4"), (self.targets_T, "<i4"), (self.offsets, "<i8")):
            digest.update(np.ascontiguousarray(array, kind).data)
        return digest.hexdigest()

    def row(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, targets) of row r, each int32 [length of the row]."""
        span = slice(self.offsets[r], self.offsets[r + 1])
        return self.ids_T[span], self.targets_T[span]

    def take(self, order: Iterable[int]) -> Rows:
        """The rows at these indices, in this order."""
        return Rows.from_pairs(self.row(int(r)) for r in order)


class AnyRows(Protocol):
    """Rows wherever they lie: `Rows` holds them in memory, `datasets.stored` pages them in."""

    def __len__(self) -> int: ...

    @property
    def lengths_R(self) -> np.ndarray:
        """int64 [R]: positions of each row."""

    @property
    def tokens(self) -> int:
        """Input positions of all rows."""

    @property
    def supervised(self) -> int:
        """Positions of all rows that are trained."""

    @property
    def sha256(self) -> str:
        """Of all that is in them, in hex; the same on every machine."""

    def take(self, order: Iterable[int]) -> Rows:
        """The rows at these indices, in this order and in memory."""


def shift_labels(tokens_T: Sequence[int], trained_T: Sequence[bool]) -> list[int]:
    """Next-token targets, with every token that is not trained ignored.

    Args:
        tokens_T: ids of one conversation, shape [T].
        trained_T: True where the token is to be learned, shape [T].

    Returns:
        Shape [T - 1]. Entry t is tokens_T[t + 1], or IGNORE.

    >>> shift_labels([11, 12, 13, 14], [False, False, True, True])
    [-100, 13, 14]
    """
    pairs = zip(tokens_T, trained_T, strict=True)
    return [token if trained else IGNORE for token, trained in pairs][1:]
