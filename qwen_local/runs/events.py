"""`metrics.jsonl`: one event a line, appended, the only source for reports.

The curves can go to TensorBoard, too, which is a copy to look at and is never read back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qwen_local.console.signals import STOPPING
from qwen_local.files import room_for

if TYPE_CHECKING:
    from qwen_local.training.tensorboard import TensorBoard


METRICS = "metrics.jsonl"


class Metrics:
    """Appends events to a file, each a whole line at once; closes it at the end of a `with`.

    Args:
        path: the file.
        board: where the curves go after it; closed with it.
    """

    def __init__(self, path: Path, board: TensorBoard | None = None) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._board = board

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, event: str, **fields: Any) -> None:
        """One event. A number that is not finite is written as null: JSON has no NaN.

        Raises:
            DiskFullError: there is no room; nothing of the line is in the file.
            OSError: it cannot be written otherwise; likewise.
        """
        content = {"event": event, **{name: _plain(value) for name, value in fields.items()}}
        line = (json.dumps(content, allow_nan=False) + "\n").encode()
        before = self._file.seek(0, os.SEEK_END)
        try:
            with room_for(self._path, len(line)):
                rest = line
                while rest:
                    rest = rest[self._file.write(rest) :]
        except BaseException:
            with suppress(OSError):
                self._file.truncate(before)
            raise
        if self._board is not None:
            with room_for(self._path, len(line)):
                self._board.write(event, **fields)

    def sync(self) -> None:
        """Bring what was written to the disk: a checkpoint must not be newer than its metrics."""
        os.fsync(self._file.fileno())


def read_metrics(path: Path, event: str | None = None) -> Iterator[dict[str, Any]]:
    """The events of a run in order, or those of one kind; a line that is not finished is none."""
    for _, fields in _events(path):
        if event is None or fields["event"] == event:
            yield fields


def how_it_ended(path: Path) -> dict[str, Any] | None:
    """The fields of the `end` that a run's events end with; None where one does not, or where a
    signal asked for it, so that something is left to do."""
    if not path.exists():
        return None
    *_, last = [{}, *read_metrics(path)]
    asked = last.get("stopped_because") in [signum.name for signum in STOPPING]
    return last if last.pop("event", None) == "end" and not asked else None


def cut_metrics(path: Path, step: int, evaluated: int | None) -> int:
    """Cut off what came after a step: the run goes on from there and writes it again.

    Args:
        path: the file.
        step: optimizer steps done; -1 keeps nothing at all.
        evaluated: the step of the last evaluation that is to stay, None for none.

    Returns:
        The last step whose training is still told: fewer than `step` where a line is damaged.
    """
    end = told = 0
    for place, fields in _events(path):
        done = fields.get("steps" if fields["event"] == "end" else "step", 0)
        again = fields["event"] == "eval" and (evaluated is None or done > evaluated)
        if done > step or again:
            break
        end = place
        if fields["event"] == "train":
            told = done
    with path.open("r+b") as file:
        file.truncate(end)
        os.fsync(file.fileno())
    return told


def _events(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(where its line ends, the event), up to the first line that is not whole."""
    place = 0
    with path.open("rb") as lines:
        for line in lines:
            place += len(line)
            try:
                fields = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(fields, dict) or "event" not in fields:
                return
            if not all(isinstance(fields.get(name, 0), int) for name in ("step", "steps")):
                return
            yield place, fields


def _plain(value: Any) -> Any:
    finite = not isinstance(value, float) or value - value == 0.0
    return value if finite else None


def largest_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """The measure of promise 1: max of |a - b| / max(|b|, 0.1).

    >>> round(largest_difference([2.0, 0.02], [2.0, 0.01]), 6)
    0.1
    """
    return max(abs(x - y) / max(abs(y), 0.1) for x, y in zip(a, b, strict=True))
