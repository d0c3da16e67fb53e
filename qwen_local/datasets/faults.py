"""Helpers for messages about faults in the data, and the check for invalid text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_QUOTE_LENGTH = 40
"""Maximum number of characters that a message quotes from the user's text."""

FAULTS_KEPT = 1_000
"""Maximum number of faults; reading stops there, so that a wrong file does not fill the memory."""


def quoted(text: str) -> str:
    """Quote the text, shortened if it is long.

    >>> print(quoted("bot"), quoted("a" * 50))
    'bot' 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...'
    """
    return repr(text if len(text) <= MAX_QUOTE_LENGTH else text[: MAX_QUOTE_LENGTH - 3] + "...")


def found(value: object) -> str:
    """Format a JSON value for a message.

    >>> print(found("bot"), found(None), found(True), found(3), found([1]), found({}), sep=", ")
    'bot', null, true, 3, a list, an object
    """
    match value:
        case str():
            return quoted(value)
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"


def meant(name: str, among: Iterable[str]) -> str | None:
    """Return a hint with the most similar name, or None if no name is similar.

    >>> meant("qestion", ["id", "question"])
    'did you mean "question"?'
    """
    near = difflib.get_close_matches(name, among, n=1)
    return f'did you mean "{near[0]}"?' if near else None


def some(names: Iterable[str], most: int = 12) -> str:
    """Join names with commas; list only the first `most` if there are more.

    >>> some(["a", "b"]), some("abcdef", 3), some([])
    ('a, b', 'a, b, c, ... (6)', 'none')
    """
    names = list(names)
    shown = names if len(names) <= most else [*names[:most], f"... ({len(names)})"]
    return ", ".join(shown) or "none"


def unusable(text: str) -> str | None:
    r"""Return the reason why this text cannot be trained on, or None if it can.

    A NUL character is always an accident, and half of a surrogate pair is not a character.

    >>> unusable("fine \U0001f600")
    >>> unusable("ab\0")
    'expected text; found a NUL character (character 3)'
    >>> unusable("\ud83d")
    'expected text; found half of a surrogate pair, \\ud83d (character 1)'
    """
    if (nul := text.find("\0")) >= 0:
        return f"expected text; found a NUL character (character {nul + 1})"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        where = f"character {error.start + 1}"
        return f"expected text; found half of a surrogate pair, {half} ({where})"
    return None
