"""Input and output of the chat: a terminal or pipes."""

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
"""TERM of a terminal that supports only text, such as an editor's window."""
DIM, PLAIN = "\x1b[2m", "\x1b[22m"

ReadLine = Callable[[str], str]
"""Reads a line after showing a prompt. Raises EOFError at the end of the input, and
KeyboardInterrupt if the line was cancelled."""


class Screen:
    """stdout for answers only: UTF-8 in any locale, and unbuffered."""

    def __init__(self, stream: BinaryIO, *, terminal: bool, color: bool) -> None:
        """Write to a stream.

        Args:
            stream: output stream for bytes.
            terminal: True if the stream is a terminal; control characters become symbols.
            color: True to dim the reasoning.
        """
        self._stream = stream
        self.terminal = terminal
        """True if the stream is a terminal."""
        self._color = color

    @classmethod
    def open(cls) -> Screen:
        """Open stdout, with colors unless NO_COLOR is set or the terminal has none."""
        if sys.stdout is None:  # closed by the caller
            return cls(io.BytesIO(), terminal=False, color=False)
        terminal = sys.stdout.isatty()
        color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != DUMB
        return cls(sys.stdout.buffer, terminal=terminal, color=color)

    def write(self, text: str, *, dim: bool = False) -> None:
        """Print a piece of an answer."""
        shown = visible(text) if self.terminal else text
        if dim and self._color:
            shown = f"{DIM}{shown}{PLAIN}"
        self._send(shown)

    def steer(self, sequence: str) -> None:
        """Send an escape sequence that moves the cursor."""
        self._send(sequence)

    def _send(self, text: str) -> None:
        self._stream.write(text.encode())
        self._stream.flush()


def print_message(message: str) -> None:
    """Print a message on stderr."""
    print(message, file=sys.stderr, flush=True)


def is_interactive() -> bool:
    """Return True if stdin is a terminal, and stdout or stderr is one too."""
    stdin, stdout, stderr = (
        stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)
    )
    return stdin and (stdout or stderr)


def reader() -> ReadLine:
    """Return the function that reads lines from stdin.

    On a terminal it has a prompt, line editing, history and paste (several pasted lines are one
    message). On a dumb terminal it has only a prompt. In a pipe it reads plain lines.
    """
    if not is_interactive():
        return _lines(prompted=False)
    return _lines(prompted=True) if os.environ.get("TERM") == DUMB else _line_editor()


def _line_editor() -> ReadLine:
    # Not readline: on macOS that is libedit, which lacks bracketed paste and miscounts wide
    # characters.
    from prompt_toolkit import PromptSession
    from prompt_toolkit.input import create_input
    from prompt_toolkit.output.vt100 import Vt100_Output

    # The prompt goes to stderr if stdout is not a terminal: stdout has only answers.
    at_stdout = sys.stdout is not None and sys.stdout.isatty()
    stream = sys.stdout if at_stdout else sys.stderr
    output = Vt100_Output.from_pty(stream, term=os.environ.get("TERM"))
    output.enable_cpr = False  # a late reply of the terminal would become part of a question
    session: PromptSession[str] = PromptSession(input=create_input(sys.stdin), output=output)
    return session.prompt


def _lines(*, prompted: bool) -> ReadLine:
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


class AnswerStop:
    """State of Ctrl+C during an answer."""

    def __init__(self) -> None:
        self.requested = False
        """True if the answer should end after its next token."""
        self.started = False
        """True after the first token."""

    def press(self, signal_number: int, frame: FrameType | None) -> None:
        """Request the end; before the first token or at a second press, interrupt at once."""
        if self.requested or not self.started:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def ctrl_c_stops_answer() -> Iterator[AnswerStop]:
    """Within this context, Ctrl+C stops the answer instead of the program."""
    stop = AnswerStop()
    before = signal.signal(signal.SIGINT, stop.press)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
