"""The curves of a run as event files, for TensorBoard to show.

Only the record format and the protocol buffers of the `tensorboard` package are used. Its
`EventFileWriter` would load TensorFlow wherever that is installed, and write from a thread of its
own, whose errors come late.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

CURVES = ("train", "eval")
"""The events whose numbers are curves over optimizer steps."""


class TensorBoard:
    """Writes a new event file into a folder; what was written is on disk at once.

    Args:
        folder: made if it is not there.
        after: the step that a run goes on from: what earlier files hold of later steps is hidden.
    """

    def __init__(self, folder: Path, *, after: int = 0) -> None:
        folder.mkdir(exist_ok=True)
        # TensorBoard knows event files by `tfevents`, and reads them in the order of their names.
        path = folder / f"events.out.tfevents.{time.time_ns()}"
        self._records = RecordWriter(path.open("xb"))
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=after + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, event: str, **fields: Any) -> None:
        """The numbers of a `train` or `eval` event, each under `<event>/<field>` at its `step`.

        They are held in single precision; one that is not finite stays what it is.
        """
        if event in CURVES:
            step = fields.pop("step")
            values = [
                Summary.Value(tag=f"{event}/{name}", simple_value=value)
                for name, value in fields.items()
            ]
            self._add(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()
