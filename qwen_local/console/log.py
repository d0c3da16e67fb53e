"""Log messages of a command: on stderr (not with `--quiet`) and in the log file.

If the terminal closes or the disk is full, the messages are lost, but the command continues.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from qwen_local.console.visible import visible

log = logging.getLogger("qwen_local")


class _IgnoresOSError(logging.Handler):
    """Drops messages that cannot be written; other errors are reported as usual."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class ConsoleHandler(_IgnoresOSError, logging.StreamHandler[TextIO]):
    """Writes messages to stderr, without escape sequences from files and names."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a message, with control characters as symbols."""
        return visible(super().format(record))


class LogFile(_IgnoresOSError, logging.FileHandler):
    """Writes messages to a file, each with its time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def close(self) -> None:
        """Close the file; unwritten messages may be lost."""
        with suppress(OSError):
            super().close()


@contextmanager
def logging_to(handler: logging.Handler) -> Iterator[None]:
    """Within this context, messages also go to this handler."""
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def talk(*, quiet: bool) -> AbstractContextManager[None]:
    """Within this context, messages go to stderr unless `quiet`."""
    return nullcontext() if quiet else logging_to(ConsoleHandler(sys.stderr))


@contextmanager
def lasting_stderr() -> Iterator[None]:
    """Within this context, writing to a closed stderr has no effect instead of raising an error.

    So progress bars, warnings and messages of libraries cannot end a run.
    """
    before = sys.stderr
    sys.stderr = cast(TextIO, _IgnoresErrors(before or _devnull()))
    try:
        yield
    finally:
        sys.stderr = before
        if before is not None:
            _discard_unwritten(before)


def _discard_unwritten(stream: TextIO) -> None:
    """Discard the buffer of a closed stream; otherwise Python would exit with code 120."""
    try:
        stream.flush()
    except OSError:
        devnull = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError):  # the stream has no file descriptor
            os.dup2(devnull, stream.fileno())
        os.close(devnull)


class _IgnoresErrors:
    """A stream that ignores errors of writing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _devnull() -> TextIO:
    """Open a replacement for a stderr that was closed from the start (`2>&-`).

    It stays open, because it has file descriptor 2. Otherwise the next file would get that
    descriptor, and with it the messages that libraries write to it.
    """
    return open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8", closefd=False)
