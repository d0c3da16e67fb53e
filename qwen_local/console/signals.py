"""How a command is stopped from outside: by Ctrl+C, by `kill`, by a terminal that closes.

A handler here does one of two things: it notes that a signal came, or it raises `Stopped`, so that
what was begun is cleaned up by every `finally` on the way out. While a `Stopped` (or Ctrl+C's
`KeyboardInterrupt`) is on its way, further signals change nothing: raised within a `finally`, they
would leave half-removed folders behind. Closing a session sends two (SIGTERM, SIGHUP) by itself.

A signal that was ignored when the command began stays ignored: `nohup` and the background jobs of a
shell ask for that. Only the main thread can handle signals; elsewhere nothing here has an effect.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a command to end."""

TOGETHER = 2.0
"""Seconds within which SIGTERM and SIGHUP are one wish: a session that closes sends several. Only
Ctrl+C is pressed twice in less."""

Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """A signal asked for the end. No `except Exception` on the way holds it up."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def name(self) -> str:
        """As `SIGTERM`."""
        return signal.Signals(self.signum).name

    @property
    def exit_code(self) -> int:
        """As a shell counts it: 129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signum

    def __str__(self) -> str:
        return f"stopped by {self.name}"


@contextmanager
def handled(signals: Sequence[signal.Signals], handler: Handler) -> Iterator[None]:
    """While this is open, these signals have this handler, unless they are ignored."""
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for signum in signals:
                found = signal.getsignal(signum)
                # None: one that is not Python's, which could not be put back.
                if found not in (signal.SIG_IGN, None):
                    before[signum] = found
                    signal.signal(signum, handler)
        yield
    finally:
        for signum, found in before.items():
            signal.signal(signum, found)


@contextmanager
def ends_by_signal() -> Iterator[None]:
    """While this is open, SIGTERM and SIGHUP raise `Stopped`, as SIGINT raises by itself."""

    def stop(signum: int, frame: FrameType | None) -> None:
        if not _on_its_way():
            raise Stopped(signum)

    with handled((signal.SIGTERM, signal.SIGHUP), stop):
        yield


class Stops:
    """While this is open, a first signal is only noted: the loop ends where nothing is lost.

    Look at `signum` wherever a step is done. A second signal raises `Stopped` on the spot, unless
    it belongs to the first (`TOGETHER`), and so does a first one within `at_once`.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        """Nothing came yet.

        Args:
            quiet: whether a first signal is noted without a word.
        """
        self.signum: int | None = None
        """The first that came."""
        self.twice = False
        """Whether another came after it."""
        self._since = 0.0
        self._quiet = quiet
        self._at_once = False
        self._handled = handled(STOPPING, self._come)

    def __enter__(self) -> Self:
        self._handled.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handled.__exit__(None, None, None)

    @property
    def name(self) -> str | None:
        """The first that came, as `SIGTERM`."""
        return None if self.signum is None else signal.Signals(self.signum).name

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What changes nothing, and so need not be waited for.

        Raises:
            Stopped: at the first signal, be it one that came before.
        """
        self._at_once = True
        try:
            if self.signum is not None:
                raise Stopped(self.signum)
            yield
        finally:
            self._at_once = False

    def _come(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is not None and signum != signal.SIGINT and now - self._since < TOGETHER:
            return
        self.twice = self.signum is not None
        if self.signum is None:
            self.signum, self._since = signum, now
        if not self.twice and not self._at_once:
            if not self._quiet:
                _say(f"{self.name}: the step is finished and saved first; once more stops at once")
        elif not _on_its_way():
            raise Stopped(signum)


def _on_its_way() -> bool:
    """Whether the code that a signal interrupted is ending already, because of an earlier one."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _say(message: str) -> None:
    """A line on stderr, past its buffers and locks: the code below may be holding them."""
    with suppress(OSError):  # a terminal that closed
        below_the_bar = "\n" if os.isatty(2) else ""
        os.write(2, f"{below_the_bar}{message}\n".encode())
