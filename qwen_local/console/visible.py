"""Text that is safe to print on a terminal."""

from __future__ import annotations

import re

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Every control character except tab and line feed."""


def visible(text: str) -> str:
    r"""Return the text with each control character replaced by a printable symbol.

    Models, data files and file names are untrusted: their escape sequences must not reach the
    terminal.

    >>> visible("\x1b[31m red \a\n")
    '␛[31m red ␇\n'
    """
    return CONTROL_CHARACTERS.sub(lambda match: _symbol(ord(match[0])), text)


def _symbol(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)  # the block "Control Pictures" has the same order
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"
