"""stdout, where a command draws: how wide it is and what it can show."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qwen_local.inspection.draw import Canvas

WIDTH = 100
"""Columns where there is no terminal to ask."""
MARKS = "⟦█⟧"


def canvas_of_stdout() -> Canvas:
    """What stdout can take; NO_COLOR and a terminal without colors are obeyed."""
    from qwen_local.inspection.draw import Canvas

    if sys.stdout is None:  # closed: nobody reads it
        return Canvas()
    terminal = sys.stdout.isatty()
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return Canvas(
        width=shutil.get_terminal_size((WIDTH, 24)).columns if terminal else WIDTH,
        unicode=takes(MARKS, sys.stdout.encoding),
        color=terminal and not plain,
    )


def takes(text: str, encoding: str) -> bool:
    """Whether a text can be written in this encoding.

    >>> takes("⟦", "utf-8"), takes("⟦", "latin-1")
    (True, False)
    """
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def print_text(text: str) -> None:
    """The result, on stdout; characters that it cannot take become their codes."""
    encoding = "utf-8" if sys.stdout is None else sys.stdout.encoding
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))
