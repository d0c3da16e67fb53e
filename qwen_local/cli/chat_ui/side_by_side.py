"""Two answers side by side in a terminal, each as it comes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import groupby

from prompt_toolkit.utils import get_cwidth

from qwen_local.cli.chat_ui.stage import InTurn, Page
from qwen_local.cli.chat_ui.terminal import DUMB, Screen
from qwen_local.console.visible import visible

NARROWEST = 36
"""Cells of a column below which lines are too short to read."""
BAR = "│ "
TAB = "    "


def size() -> tuple[int, int]:
    """(cells of a line, lines) of the terminal that stdout is; (0, 0) where it is none of use."""
    if os.environ.get("TERM") == DUMB:
        return 0, 0
    try:
        found = os.get_terminal_size(sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):
        return 0, 0
    return found.columns, found.lines


class Columns(InTurn):
    """The first voice on the left as it comes; then the cursor goes up again, for the second.

    Where the first answer has left the window at the top, the second follows below it: what has
    scrolled away cannot be written to. In a narrow window it follows, too, and both have its whole
    width. Words about the answers wait until both are there.
    """

    def __init__(self, screen: Screen, size: Callable[[], tuple[int, int]] = size) -> None:
        """Begin with nothing asked.

        Args:
            screen: a terminal.
            size: what it is, asked with every question: see the function of this name.
        """
        super().__init__(screen)
        self._size = size
        self._lines = 0
        self._columns: list[_Column] = []
        self._words: list[tuple[str, str]] = []

    def begin(self, voice: str) -> Page:
        """See `Stage.begin`."""
        if self._columns:
            column = self._beside(self._columns[0])
        else:
            cells, self._lines = self._size()
            width = (cells - len(BAR) - 1) // 2
            if width < NARROWEST:
                return super().begin(voice)
            column = _Column(self._screen, width)
        self._columns.append(column)
        column.write(f"--- {voice} ---\n", dim=True)
        return column

    def _beside(self, left: _Column) -> _Column:
        if left.rows >= self._lines:
            return _Column(self._screen, left.width)
        self._screen.steer(f"\x1b[{left.rows}A")
        return _Column(self._screen, left.width, place=f"\x1b[{left.width + 2}G")

    def thinks(self, voice: str) -> None:
        """See `Stage.thinks`."""
        if self._columns:
            self._columns[-1].write("(thinking)\n", dim=True)
        else:
            super().thinks(voice)

    def say(self, voice: str, message: str) -> None:
        """See `Stage.say`."""
        if self._columns:
            self._words.append((voice, message))
        else:
            super().say(voice, message)

    def end(self, question: str) -> None:
        """See `Stage.end`."""
        if self._columns and self._columns[-1].place:
            left, right = self._columns
            right.write("\n" * (left.rows - right.rows))
        words, self._words, self._columns = self._words, [], []
        for voice, message in words:
            self.say(voice, message)


class _Column:
    """Text broken between words (and between wide characters) so that no line is too long."""

    def __init__(self, screen: Screen, width: int, *, place: str = "") -> None:
        """Begin at the cursor's line.

        Args:
            screen: a terminal.
            width: cells of a line, at least two.
            place: puts the cursor to the column's beginning, behind which stands a bar; nothing for
                the column on the left.
        """
        self.width = width
        self.place = place
        self._screen = screen
        self._used = 0  # cells of the line
        self._word: list[tuple[str, bool]] = []  # characters whose word may go on, and how they are
        self._begun = False  # whether the line is
        self.rows = 0
        """Lines that are over."""

    def write(self, text: str, *, dim: bool = False) -> None:
        """See `Page.write`. The last word is shown once it is known where it ends."""
        for character in visible(text).replace("\t", TAB):
            if character == "\n":
                self._put_word()
                self._end_line()
            elif character == " ":
                self._put_word()
                if self._used < self.width:  # else the line breaks here
                    self._put(" ", dim=dim)
            else:
                if get_cwidth(character) > 1 or self._cells(character) > self.width:
                    self._put_word()
                self._word.append((character, dim))

    def _cells(self, more: str = "") -> int:
        """Of the word that may go on."""
        return sum(get_cwidth(character) for character, _ in self._word) + get_cwidth(more)

    def _put_word(self) -> None:
        if self._used + self._cells() > self.width:
            self._end_line()
        for dim, characters in groupby(self._word, key=lambda each: each[1]):
            self._put("".join(character for character, _ in characters), dim=dim)
        self._word = []

    def _put(self, text: str, *, dim: bool) -> None:
        self._begin_line()
        self._screen.write(text, dim=dim)
        self._used += get_cwidth(text)

    def _begin_line(self) -> None:
        if not self._begun and self.place:
            self._screen.steer(self.place)
            self._screen.write(BAR, dim=True)
        self._begun = True

    def _end_line(self) -> None:
        self._begin_line()
        self._screen.write("\n")
        self._used, self._begun = 0, False
        self.rows += 1
