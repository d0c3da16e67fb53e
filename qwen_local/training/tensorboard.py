"""Curves of a run as event files for TensorBoard.

Only the record format and the protocol buffers of the `tensorboard` package are used. Its
`EventFileWriter` would load TensorFlow if that is installed, and write from a thread of its own,
whose errors surface late.
"""

from __future__ import annotations

import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event as Record
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from qwen_local.runs.events import EvalEvent, Event, TrainEvent, numbers_of


class TensorBoard:
    """Writes a new event file into a folder; a point is on the disk when `write` returns.

    Args:
        folder: created if missing.
        after: step that the run resumes from. Points of later steps in earlier files are hidden.
    """

    def __init__(self, folder: Path, *, after: int = 0) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        # TensorBoard recognizes event files by `tfevents`, and reads them in order of their names.
        path = folder / f"events.out.tfevents.{time.time_ns()}"
        self._records = RecordWriter(path.open("xb"))
        self._add(Record(file_version="brain.Event:2"))
        self._add(Record(step=after + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, event: Event) -> None:
        """Add the numbers of a `train` or `eval` event as `<event>/<field>` at its step.

        Single precision; a number that is not finite stays so. Other events are ignored.
        """
        if isinstance(event, TrainEvent | EvalEvent):
            values = [
                Summary.Value(tag=f"{event.KIND}/{name}", simple_value=value)
                for name, value in numbers_of(event).items()
                if name != "step"
            ]
            self._add(Record(step=event.step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _add(self, record: Record) -> None:
        record.wall_time = time.time()
        self._records.write(record.SerializeToString())
        self._records.flush()
