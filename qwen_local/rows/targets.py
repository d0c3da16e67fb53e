"""Targets: what each position of the rows is trained to predict.

`Rows`, the row store, micro-batches and the engines hand targets on as this value. Only the loss
of an engine's head knows what is in its columns.

Shapes: T = positions, N = supervised positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

IGNORE = -100
"""The target of a position that is not supervised (the value that PyTorch and PEFT use)."""

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Hard targets: the id of the next token at each position, or `IGNORE`."""

    ids_T: np.ndarray
    """int32 [T]."""

    @classmethod
    def of(cls, ids_T: Ids) -> Targets:
        """Targets from token ids, one for each position."""
        return cls(np.asarray(ids_T, np.int32))

    @classmethod
    def concatenate(cls, parts: Sequence[Targets]) -> Targets:
        """The positions of all parts, one part after the other; no part gives no position."""
        return cls(np.concatenate([np.zeros(0, np.int32), *(part.ids_T for part in parts)]))

    def __len__(self) -> int:
        return len(self.ids_T)

    def __getitem__(self, positions: slice | np.ndarray) -> Targets:
        """The targets at these positions: a slice, or int64 indices in their order."""
        return Targets(self.ids_T[positions])

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """The arrays that an engine moves to its device, each with a first axis of positions."""
        return {"ids": self.ids_T}

    @property
    def supervised_N(self) -> np.ndarray:
        """int64 [N]: the positions that count in the loss, rising."""
        return np.flatnonzero(self.ids_T != IGNORE)

    @property
    def supervised(self) -> int:
        """Number of positions that count in the loss."""
        return int(np.count_nonzero(self.ids_T != IGNORE))

    @property
    def content(self) -> bytes:
        """The bytes that a digest of rows covers, the same on every machine."""
        return np.ascontiguousarray(self.ids_T, "<i4").tobytes()

    def padded(self, count: int) -> Targets:
        """The same targets with unsupervised positions after them, `count` in all."""
        return Targets(np.pad(self.ids_T, (0, count - len(self)), constant_values=IGNORE))


def shift_labels(tokens_T: Ids, supervised_T: Sequence[bool] | np.ndarray) -> Targets:
    """Next-token targets, with every token that is not supervised ignored.

    Args:
        tokens_T: ids of one conversation, shape [T].
        supervised_T: True where the token counts in the loss, shape [T].

    Returns:
        T - 1 targets. Entry t is tokens_T[t + 1], or IGNORE.

    >>> shift_labels([11, 12, 13, 14], [False, False, True, True]).ids_T.tolist()
    [-100, 13, 14]
    """
    assert len(tokens_T) == len(supervised_T)
    return Targets.of(np.where(supervised_T, tokens_T, IGNORE)[1:])
