"""Display of two answers side by side in a terminal, while they are generated."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import groupby

from prompt_toolkit.utils import get_cwidth

from qwen_local.cli.chat_ui.display import SequentialDisplay, TextOutput
from qwen_local.cli.chat_ui.terminal import DUMB, Screen
from qwen_local.console.visible import visible

MIN_COLUMN_WIDTH = 36
"""Minimum width of a column in cells; shorter lines are hard to read."""
BAR = "│ "
TAB = "    "


def size() -> tuple[int, int]:
    """Return (columns, lines) of the terminal at stdout; (0, 0) if there is no usable terminal."""
    if os.environ.get("TERM") == DUMB:
        return 0, 0
    try:
        found = os.get_terminal_size(sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):
        return 0, 0
    return found.columns, found.lines


class ColumnDisplay(SequentialDisplay):
    """Prints the first answer on the left, then moves the cursor up for the second answer.

    If the first answer has scrolled out of the window, the second one follows below it, because
    lines outside the window cannot be changed. In a narrow window the answers also follow each
    other, at full width. Messages about the answers are printed after both.
    """

    def __init__(self, screen: Screen, size: Callable[[], tuple[int, int]] = size) -> None:
        """Start before the first question.

        Args:
            screen: a terminal.
            size: returns (columns, lines) of the terminal; called for every question.
        """
        super().__init__(screen)
        self._size = size
        self._lines = 0
        self._columns: list[_Column] = []
        self._messages: list[tuple[str, str]] = []

    def start(self, name: str) -> TextOutput:
        """See `Display.start`."""
        if self._columns:
            column = self._beside(self._columns[0])
        else:
            cells, self._lines = self._size()
            width = (cells - len(BAR) - 1) // 2
            if width < MIN_COLUMN_WIDTH:
                return super().start(name)
            column = _Column(self._screen, width)
        self._columns.append(column)
        column.write(f"--- {name} ---\n", dim=True)
        return column

    def _beside(self, left: _Column) -> _Column:
        if left.rows >= self._lines:
            return _Column(self._screen, left.width)
        self._screen.steer(f"\x1b[{left.rows}A")
        return _Column(self._screen, left.width, place=f"\x1b[{left.width + 2}G")

    def show_thinking(self, name: str) -> None:
        """See `Display.show_thinking`."""
        if self._columns:
            self._columns[-1].write("(thinking)\n", dim=True)
        else:
            super().show_thinking(name)

    def show_message(self, name: str, message: str) -> None:
        """See `Display.show_message`."""
        if self._columns:
            self._messages.append((name, message))
        else:
            super().show_message(name, message)

    def finish(self, question: str) -> None:
        """See `Display.finish`."""
        if self._columns and self._columns[-1].place:
            left, right = self._columns
            right.write("\n" * (left.rows - right.rows))
        messages, self._messages, self._columns = self._messages, [], []
        for name, message in messages:
            self.show_message(name, message)


class _Column:
    """A column of text, wrapped between words and between wide characters."""

    def __init__(self, screen: Screen, width: int, *, place: str = "") -> None:
        """Start at the line of the cursor.

        Args:
            screen: a terminal.
            width: width of the column in cells, at least two.
            place: escape sequence that moves the cursor to the start of the column, where a bar is
                printed; empty for the left column.
        """
        self.width = width
        self.place = place
        self._screen = screen
        self._used = 0  # used cells of the current line
        self._word: list[tuple[str, bool]] = []  # (character, dim) of an unfinished word
        self._line_started = False
        self.rows = 0
        """Number of finished lines."""

    def write(self, text: str, *, dim: bool = False) -> None:
        """See `TextOutput.write`. The last word is printed only when it is complete."""
        for character in visible(text).replace("\t", TAB):
            if character == "\n":
                self._put_word()
                self._end_line()
            elif character == " ":
                self._put_word()
                if self._used < self.width:  # otherwise the line breaks here
                    self._put(" ", dim=dim)
            else:
                if get_cwidth(character) > 1 or self._cells(character) > self.width:
                    self._put_word()
                self._word.append((character, dim))

    def _cells(self, more: str = "") -> int:
        """Width of the unfinished word in cells, with `more` appended."""
        return sum(get_cwidth(character) for character, _ in self._word) + get_cwidth(more)

    def _put_word(self) -> None:
        if self._used + self._cells() > self.width:
            self._end_line()
        for dim, characters in groupby(self._word, key=lambda each: each[1]):
            self._put("".join(character for character, _ in characters), dim=dim)
        self._word = []

    def _put(self, text: str, *, dim: bool) -> None:
        self._start_line()
        self._screen.write(text, dim=dim)
        self._used += get_cwidth(text)

    def _start_line(self) -> None:
        if not self._line_started and self.place:
            self._screen.steer(self.place)
            self._screen.write(BAR, dim=True)
        self._line_started = True

    def _end_line(self) -> None:
        self._start_line()
        self._screen.write("\n")
        self._used, self._line_started = 0, False
        self.rows += 1
