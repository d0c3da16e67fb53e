"""Inputs of a pass over a packed micro-batch, padded where shapes must be few.

Shapes: T = positions of all rows, R = rows, N = supervised positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from qwen_local.backends.cuda.attention import Borders
from qwen_local.backends.cuda.constants import recorded_size
from qwen_local.backends.cuda.head import Columns
from qwen_local.rows.micro_batch import MicroBatch

Shape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """A micro-batch as tensors."""

    ids_T: Tensor
    """int32."""
    borders: Borders
    positions_N: Tensor
    """int64: the supervised positions."""
    targets_N: Columns

    @classmethod
    def of(
        cls,
        batch: MicroBatch,
        to_device: Callable[[np.ndarray], Tensor],
        *,
        longest: int | None = None,
    ) -> Inputs:
        """Move a micro-batch to a device.

        Args:
            batch: packed.
            to_device: moves an array.
            longest: see `Borders.of`.
        """
        return cls(
            to_device(batch.ids_BW[0]),
            Borders.of(batch.lengths, to_device, longest),
            to_device(batch.positions_N),
            {name: to_device(column) for name, column in batch.targets.columns.items()},
        )

    @property
    def shape(self) -> Shape:
        """Everything that launches depend on."""
        rows = len(self.borders.starts) - 1
        return len(self.ids_T), rows, self.borders.longest, len(self.positions_N)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in one order."""
        borders = self.borders
        own = [self.ids_T, borders.positions_T, borders.starts, self.positions_N]
        return [*own, *self.targets_N.values()]

    def copy(self) -> Inputs:
        """Return the same values in tensors of their own."""
        borders = self.borders
        return Inputs(
            self.ids_T.clone(),
            replace(
                borders, positions_T=borders.positions_T.clone(), starts=borders.starts.clone()
            ),
            self.positions_N.clone(),
            {name: column.clone() for name, column in self.targets_N.items()},
        )


def padded(batch: MicroBatch) -> tuple[MicroBatch, int]:
    """Pad a packed micro-batch to one of few shapes; nothing that counts changes.

    A last row of token 0 takes the positions that are added, and empty rows make up the number of
    rows. Added targets count nothing.

    Returns:
        (the micro-batch, a round number that no row of it is longer than).
    """
    positions, count = batch.ids_BW.shape[1], len(batch.targets)
    rest = recorded_size(positions) - positions
    supervised = recorded_size(count)
    rows = 1 << len(batch.lengths).bit_length()  # one more at least
    lengths = (*batch.lengths, rest, *[0] * (rows - len(batch.lengths) - 1))
    made = replace(
        batch,
        ids_BW=np.pad(batch.ids_BW, ((0, 0), (0, rest))),
        lengths=lengths,
        positions_N=np.pad(batch.positions_N, (0, supervised - count)),
        targets=batch.targets.padded(supervised),
    )
    return made, 1 << (max(lengths) - 1).bit_length()
