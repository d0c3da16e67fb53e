"""What a command says while it works: on stderr, and nowhere with `--quiet`.

A terminal that closes or a disk that is full takes the talk along, and nothing else.
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


class _Unheard(logging.Handler):
    """What cannot be written is lost without a traceback; any other fault is told as always."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class Talk(_Unheard, logging.StreamHandler[TextIO]):
    """To stderr; what files and names say there must not steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, control characters as symbols."""
        return visible(super().format(record))


class LogFile(_Unheard, logging.FileHandler):
    """To a file, each line with its time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def close(self) -> None:
        """Close the file; what it still had to take may be lost."""
        with suppress(OSError):
            super().close()


@contextmanager
def handled(handler: logging.Handler) -> Iterator[None]:
    """What is said goes to this handler, too."""
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def talk(*, quiet: bool) -> AbstractContextManager[None]:
    """What is said goes to stderr, unless `quiet`."""
    return nullcontext() if quiet else handled(Talk(sys.stderr))


@contextmanager
def lasting_stderr() -> Iterator[None]:
    """While this is open, a stderr that closed takes what anybody writes to it, and loses it.

    Progress bars, warnings and the talk of libraries are then no reason for a run to end.
    """
    before = sys.stderr
    sys.stderr = cast(TextIO, _Lasting(before or _nowhere()))
    try:
        yield
    finally:
        sys.stderr = before
        if before is not None:
            _settle(before)


def _settle(stream: TextIO) -> None:
    """Let go of what a stream that closed still holds: Python would end with 120 because of it."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError):  # it has no number
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Lasting:
    """A stream that never fails to be written to."""

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


def _nowhere() -> TextIO:
    """In the place of a stderr that was closed from the start (`2>&-`).

    It is left open: it has the number 2, which the next file would otherwise get, and with it what
    libraries say to that number.
    """
    return open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8", closefd=False)
