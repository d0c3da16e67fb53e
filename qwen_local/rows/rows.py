"""Tokenized rows: the type that crosses the seam between the data, the loop and the engines.

Shapes: R = rows, T = positions of all rows together, one row after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qwen_local.rows.targets import Ids, Targets


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Ragged rows of token ids with their next-token targets.

    Position t of a row holds the t-th token and, as its target, token t + 1 where that one is
    supervised and `IGNORE` where it is not. The last token of a conversation is therefore only a
    target, never an input.
    """

    ids_T: np.ndarray
    """int32 [T]: input tokens."""
    targets: Targets
    """Of the T positions."""
    offsets: np.ndarray
    """int64 [R + 1]: row r is positions offsets[r] to offsets[r + 1]."""

    @classmethod
    def from_pairs(cls, rows: Iterable[tuple[Ids, Targets]]) -> Rows:
        """Rows from (ids, targets) pairs, each pair of one length."""
        pairs = [(np.asarray(ids, np.int32), targets) for ids, targets in rows]
        assert all(len(ids) == len(targets) for ids, targets in pairs)
        return cls(
            ids_T=np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in pairs)]),
            targets=Targets.concatenate([targets for _, targets in pairs]),
            offsets=np.cumsum([0, *(len(ids) for ids, _ in pairs)], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths_R(self) -> np.ndarray:
        """int64 [R]: positions of each row."""
        return np.diff(self.offsets)

    @property
    def tokens(self) -> int:
        """Number of input positions of all rows."""
        return int(self.offsets[-1])

    @property
    def supervised(self) -> int:
        """Number of positions of all rows that count in the loss."""
        return self.targets.supervised

    @property
    def sha256(self) -> str:
        """Hex digest of ids, targets and offsets; the same on every machine."""
        digest = hashlib.sha256(np.ascontiguousarray(self.ids_T, "<i4").data)
        digest.update(self.targets.content)
        digest.update(np.ascontiguousarray(self.offsets, "<i8").data)
        return digest.hexdigest()

    def row(self, r: int) -> tuple[np.ndarray, Targets]:
        """(ids int32 [length of the row], targets) of row r."""
        span = slice(self.offsets[r], self.offsets[r + 1])
        return self.ids_T[span], self.targets[span]

    def take(self, order: Iterable[int]) -> Rows:
        """The rows at these indices, in this order."""
        return Rows.from_pairs(self.row(int(r)) for r in order)


class AnyRows(Protocol):
    """Rows in memory (`Rows`) or on the disk (`datasets.row_store.StoredRows`)."""

    def __len__(self) -> int: ...

    @property
    def lengths_R(self) -> np.ndarray:
        """int64 [R]: positions of each row."""

    @property
    def tokens(self) -> int:
        """Number of input positions of all rows."""

    @property
    def supervised(self) -> int:
        """Number of positions of all rows that count in the loss."""

    @property
    def sha256(self) -> str:
        """Hex digest of the content of all rows; the same on every machine."""

    def take(self, order: Iterable[int]) -> Rows:
        """The rows at these indices, in this order and in memory."""
