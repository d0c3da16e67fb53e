"""`metrics.jsonl`: one event a line, appended, the only source for reports.

The curves can go to TensorBoard, too, which is a copy to look at and is never read back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from qwen_local.training.tensorboard import TensorBoard


class Metrics:
    """Appends events to a file, each a whole line at once; closes it at the end of a `with`.

    Args:
        path: the file.
        board: where the curves go after it; closed with it.
    """

    def __init__(self, path: Path, board: TensorBoard | None = None) -> None:
        self._file = path.open("a", encoding="utf-8", newline="\n")
        self._board = board

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, event: str, **fields: Any) -> None:
        """One event. A number that is not finite is written as null: JSON has no NaN."""
        line = {"event": event, **{name: _plain(value) for name, value in fields.items()}}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.write(event, **fields)


def read_metrics(path: Path, event: str | None = None) -> Iterator[dict[str, Any]]:
    """The events of a run in order, or those of one kind."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            fields = json.loads(line)
            if event is None or fields["event"] == event:
                yield fields


def _plain(value: Any) -> Any:
    finite = not isinstance(value, float) or value - value == 0.0
    return value if finite else None


def largest_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """The measure of promise 1: max of |a - b| / max(|b|, 0.1).

    >>> round(largest_difference([2.0, 0.02], [2.0, 0.01]), 6)
    0.1
    """
    return max(abs(x - y) / max(abs(y), 0.1) for x, y in zip(a, b, strict=True))
