"""Standard output: its width, colors and characters."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qwen_local.inspection.draw import Canvas

WIDTH = 100
"""Columns without a terminal."""
MARKS = "⟦█⟧"


def canvas_of_stdout() -> Canvas:
    """Return the width and abilities of stdout; respects NO_COLOR and TERM=dumb."""
    from qwen_local.inspection.draw import Canvas

    if sys.stdout is None:  # closed
        return Canvas()
    terminal = sys.stdout.isatty()
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return Canvas(
        width=shutil.get_terminal_size((WIDTH, 24)).columns if terminal else WIDTH,
        unicode=takes(MARKS, sys.stdout.encoding),
        color=terminal and not plain,
    )


def takes(text: str, encoding: str) -> bool:
    """Return True if a text can be written in this encoding.

    >>> takes("⟦", "utf-8"), takes("⟦", "latin-1")
    (True, False)
    """
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def print_text(text: str) -> None:
    """Print on stdout; characters that its encoding lacks become escape codes."""
    encoding = "utf-8" if sys.stdout is None else sys.stdout.encoding
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))
