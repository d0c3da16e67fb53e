"""What is said and cannot be heard is lost, and nothing else is."""

from __future__ import annotations

import errno
import io
import logging
import sys
from pathlib import Path

import pytest

from qwen_local.console.log import ConsoleHandler, LogFile, lasting_stderr, logging_to, talk

log = logging.getLogger("qwen_local")


class Gone(io.StringIO):
    """A terminal that closed."""

    def write(self, _: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def flush(self) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def isatty(self) -> bool:
        return True


def test_writing_to_a_closed_stderr_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Gone()
    monkeypatch.setattr(sys, "stderr", gone)
    with lasting_stderr(), talk(quiet=False):
        assert sys.stderr.write("said") == 4
        sys.stderr.flush()
        print("said", file=sys.stderr, flush=True)
        log.info("said")
        assert sys.stderr.isatty()
    assert sys.stderr is gone


def test_messages_to_a_closed_stream_are_lost_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", Gone())
    with talk(quiet=False), logging_to(LogFile(tmp_path / "run.log")):
        monkeypatch.undo()  # where a traceback would be seen
        log.info("said")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "run.log").read_text().endswith(" said\n")


def test_a_formatting_error_in_a_message_is_still_reported(
    capfd: pytest.CaptureFixture[str],
) -> None:
    ConsoleHandler(sys.stderr).handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",)}))
    assert "TypeError" in capfd.readouterr().err
