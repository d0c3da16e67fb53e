"""Bar charts and marked text for terminals, with or without colors and Unicode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

EIGHTHS = " ▏▎▍▌▋▊▉█"
"""Block characters that fill 0/8 to 8/8 of a cell."""

Part = Literal["context", "trained", "cut"]
"""Role of a text segment: context, supervised, or cut off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """Capabilities of the terminal (or file) that text is printed on."""

    width: int = 80
    """Line width in columns."""
    unicode: bool = True
    color: bool = False


COLORS: dict[Part, tuple[str, str]] = {
    "context": ("\x1b[2m", "\x1b[22m"),  # dim
    "trained": ("\x1b[32m", "\x1b[39m"),  # green
    "cut": ("\x1b[31;9m", "\x1b[39;29m"),  # red, strikethrough
}
MARKS: dict[Part, tuple[str, str]] = {
    "context": ("", ""),
    "trained": ("⟦", "⟧"),
    "cut": ("⟦cut: ", "⟧"),
}
ASCII_MARKS: dict[Part, tuple[str, str]] = {
    "context": ("", ""),
    "trained": ("[[", "]]"),
    "cut": ("[[cut: ", "]]"),
}


def marked(part: Part, text: str, canvas: Canvas) -> str:
    """Color a segment of text or, without colors, enclose it in marks.

    >>> marked("trained", "Yes", Canvas()), marked("cut", "No", Canvas(unicode=False))
    ('⟦Yes⟧', '[[cut: No]]')
    """
    before, after = marks(canvas)[part]
    if canvas.color:  # pagers reset colors at line ends
        return "\n".join(f"{before}{line}{after}" if line else "" for line in text.split("\n"))
    return f"{before}{text}{after}"


def marks(canvas: Canvas) -> dict[Part, tuple[str, str]]:
    """Return the text before and after each part."""
    if canvas.color:
        return COLORS
    return MARKS if canvas.unicode else ASCII_MARKS


def chart(names: Sequence[str], counts: Sequence[int], canvas: Canvas) -> list[str]:
    """Draw a line per count: name, number and bar.

    >>> print(*chart(["1-32", "33-64", "65-"], [3, 1500, 0], Canvas(width=24)), sep="\\n")
     1-32      3 ▏
    33-64  1,500 ██████████
      65-      0
    """
    numbers = [f"{count:,}" for count in counts]
    left = max(map(len, names), default=0)
    right = max(map(len, numbers), default=0)
    room = max(canvas.width - left - right - 4, 1)
    return [
        f"{name:>{left}}  {number:>{right}} {bar(count, max(counts), room, canvas)}".rstrip()
        for name, number, count in zip(names, numbers, counts, strict=True)
    ]


def bar(count: int, largest: int, width: int, canvas: Canvas) -> str:
    """Draw a bar in which `largest` fills the width; counts above 0 are always visible.

    >>> bar(1, 2, 5, Canvas()), bar(1, 1000, 5, Canvas()), bar(1, 2, 4, Canvas(unicode=False))
    ('██▌', '▏', '##')
    """
    if count == 0:
        return ""
    if not canvas.unicode:
        return "#" * max(round(width * count / largest), 1)
    whole, rest = divmod(max(round(8 * width * count / largest), 1), 8)
    return (EIGHTHS[8] * whole + EIGHTHS[rest]).rstrip()
