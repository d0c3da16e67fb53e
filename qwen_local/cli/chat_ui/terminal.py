"""Where a conversation is read and written: a terminal, or the pipes of a program."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import BinaryIO

from qwen_local.console.visible import visible
from qwen_local.datasets.faults import unusable
from qwen_local.errors import InputError

DUMB = "dumb"
"""TERM of a terminal that only takes text: an editor's window, a log."""
DIM, PLAIN = "\x1b[2m", "\x1b[22m"

Read = Callable[[str], str]
"""(prompt) -> what was written behind it. Raises EOFError where there is no more, and
KeyboardInterrupt where the line was given up."""


class Screen:
    """stdout, for the answers alone: UTF-8, whatever the locale, and out at once."""

    def __init__(self, stream: BinaryIO, *, terminal: bool, color: bool) -> None:
        """Put the answers on a stream.

        Args:
            stream: takes bytes.
            terminal: whether it is one: control characters then become symbols.
            color: whether thoughts are dimmed.
        """
        self._stream = stream
        self.terminal = terminal
        """Whether it is one."""
        self._color = color

    @classmethod
    def open(cls) -> Screen:
        """stdout; NO_COLOR and a terminal without colors are obeyed."""
        if sys.stdout is None:  # closed: nobody reads it
            return cls(io.BytesIO(), terminal=False, color=False)
        terminal = sys.stdout.isatty()
        color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != DUMB
        return cls(sys.stdout.buffer, terminal=terminal, color=color)

    def write(self, text: str, *, dim: bool = False) -> None:
        """Show a piece of an answer."""
        shown = visible(text) if self.terminal else text
        if dim and self._color:
            shown = f"{DIM}{shown}{PLAIN}"
        self._send(shown)

    def steer(self, sequence: str) -> None:
        """Move a terminal's cursor."""
        self._send(sequence)

    def _send(self, text: str) -> None:
        self._stream.write(text.encode())
        self._stream.flush()


def say(message: str) -> None:
    """Talk, on stderr."""
    print(message, file=sys.stderr, flush=True)


def is_interactive() -> bool:
    """Whether a person writes the questions, and sees where."""
    here = [
        stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)
    ]
    return here[0] and (here[1] or here[2])


def reader() -> Read:
    """How to read lines of stdin.

    From a terminal with a prompt, editing, history and pasting (several lines pasted are one
    message); from a terminal that can do nothing with a prompt; from a pipe as they are.
    """
    if not is_interactive():
        return _lines(prompted=False)
    return _lines(prompted=True) if os.environ.get("TERM") == DUMB else _line_editor()


def _line_editor() -> Read:
    # Not readline: on a Mac that is libedit, which knows no bracketed paste and miscounts wide
    # characters.
    from prompt_toolkit import PromptSession
    from prompt_toolkit.input import create_input
    from prompt_toolkit.output.vt100 import Vt100_Output

    # On stderr where stdout is not a terminal: there are answers alone.
    at_stdout = sys.stdout is not None and sys.stdout.isatty()
    stream = sys.stdout if at_stdout else sys.stderr
    output = Vt100_Output.from_pty(stream, term=os.environ.get("TERM"))
    output.enable_cpr = False  # a terminal's late reply would be taken for a part of a question
    session: PromptSession[str] = PromptSession(input=create_input(sys.stdin), output=output)
    return session.prompt


def _lines(*, prompted: bool) -> Read:
    if sys.stdin is None:
        raise InputError.at("stdin", "it is closed")
    stream, count = sys.stdin.buffer, 0

    def read(prompt: str) -> str:
        nonlocal count
        if prompted:
            print(prompt, end="", file=sys.stderr, flush=True)
        line = stream.readline()
        count += 1
        if not line:
            raise EOFError
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            problem = f"expected UTF-8; found byte 0x{line[error.start]:02x} at {error.start}"
            raise InputError.at(f"stdin:{count}", problem) from None
        if (fault := unusable(text)) is not None:
            raise InputError.at(f"stdin:{count}", fault)
        return text

    return read


class Stop:
    """Ctrl+C while an answer comes."""

    def __init__(self) -> None:
        self.asked = False
        """Whether the answer is to end after its next token."""
        self.coming = False
        """Whether its first token is there."""

    def press(self, signal_number: int, frame: FrameType | None) -> None:
        """Ask for the end; where there is no token to wait for, or at a second press, end it."""
        if self.asked or not self.coming:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def stoppable() -> Iterator[Stop]:
    """While it is open, Ctrl+C ends the answer."""
    stop = Stop()
    before = signal.signal(signal.SIGINT, stop.press)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
