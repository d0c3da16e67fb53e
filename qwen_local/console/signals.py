"""Signals that stop a command: Ctrl+C, `kill`, and a terminal that closes.

A handler either records the signal or raises `Stopped`, so that every `finally` cleans up. While a
`Stopped` (or the `KeyboardInterrupt` of Ctrl+C) propagates, further signals have no effect: raised
inside a `finally`, they would leave half-removed folders behind. A closing session sends both
SIGTERM and SIGHUP.

A signal that was ignored at the start stays ignored, as `nohup` and the background jobs of a shell
require. Only the main thread can handle signals; in other threads this module has no effect.
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
"""Signals that ask a command to end."""

SAME_REQUEST_SECONDS = 2.0
"""Seconds within which several SIGTERM and SIGHUP count as one request, because a closing session
sends several. A second Ctrl+C always counts."""

Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """Raised when a signal asks the command to end. `except Exception` does not catch it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def name(self) -> str:
        """Name of the signal, such as `SIGTERM`."""
        return signal.Signals(self.signum).name

    @property
    def exit_code(self) -> int:
        """Exit code as in a shell: 129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signum

    def __str__(self) -> str:
        return f"stopped by {self.name}"


@contextmanager
def handled(signals: Sequence[signal.Signals], handler: Handler) -> Iterator[None]:
    """Within this context, these signals have this handler, unless they are ignored."""
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for signum in signals:
                found = signal.getsignal(signum)
                # None: a handler that Python did not install and could not restore.
                if found not in (signal.SIG_IGN, None):
                    before[signum] = found
                    signal.signal(signum, handler)
        yield
    finally:
        for signum, found in before.items():
            signal.signal(signum, found)


@contextmanager
def ends_by_signal() -> Iterator[None]:
    """Within this context, SIGTERM and SIGHUP raise `Stopped`, as SIGINT raises by itself."""

    def stop(signum: int, frame: FrameType | None) -> None:
        if not _is_stopping():
            raise Stopped(signum)

    with handled((signal.SIGTERM, signal.SIGHUP), stop):
        yield


class Stops:
    """Within this context, a first signal is only recorded, so that a loop can end cleanly.

    Check `signum` after every step. A second signal raises `Stopped` immediately, unless it belongs
    to the first (`SAME_REQUEST_SECONDS`). Within `at_once`, a first signal also raises `Stopped`.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        """Start without a signal.

        Args:
            quiet: True to record a first signal without a message.
        """
        self.signum: int | None = None
        """First signal, or None."""
        self.twice = False
        """True after a second signal."""
        self._since = 0.0
        self._quiet = quiet
        self._at_once = False
        self._handled = handled(STOPPING, self._handle)

    def __enter__(self) -> Self:
        self._handled.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handled.__exit__(None, None, None)

    @property
    def name(self) -> str | None:
        """Name of the first signal, such as `SIGTERM`, or None."""
        return None if self.signum is None else signal.Signals(self.signum).name

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this context, a signal interrupts immediately: the work changes no state.

        Raises:
            Stopped: at the first signal, including a signal that was already recorded.
        """
        self._at_once = True
        try:
            if self.signum is not None:
                raise Stopped(self.signum)
            yield
        finally:
            self._at_once = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if (
            self.signum is not None
            and signum != signal.SIGINT
            and now - self._since < SAME_REQUEST_SECONDS
        ):
            return
        self.twice = self.signum is not None
        if self.signum is None:
            self.signum, self._since = signum, now
        if not self.twice and not self._at_once:
            if not self._quiet:
                _write_stderr(
                    f"{self.name}: finishing the step and saving; repeat to stop immediately"
                )
        elif not _is_stopping():
            raise Stopped(signum)


def _is_stopping() -> bool:
    """Return True if the interrupted code is already ending because of an earlier signal."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _write_stderr(message: str) -> None:
    """Write a line to stderr without its buffer and locks, which the interrupted code may hold."""
    with suppress(OSError):  # the terminal is closed
        below_the_bar = "\n" if os.isatty(2) else ""
        os.write(2, f"{below_the_bar}{message}\n".encode())
