"""How faults in the data are worded, and which text can never be trained on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_QUOTE = 40
"""Characters of the user's own text that a message repeats."""

FAULTS_KEPT = 1_000
"""Reading a source stops here: a file of another kind would otherwise fill the memory."""


def quoted(text: str) -> str:
    """The text in quotes, cut where it is long.

    >>> print(quoted("bot"), quoted("a" * 50))
    'bot' 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...'
    """
    return repr(text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 3] + "...")


def found(value: object) -> str:
    """A JSON value as a message names it.

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
    """What the user probably meant, as a hint; None where nothing is near.

    >>> meant("qestion", ["id", "question"])
    'did you mean "question"?'
    """
    near = difflib.get_close_matches(name, among, n=1)
    return f'did you mean "{near[0]}"?' if near else None


def some(names: Iterable[str], most: int = 12) -> str:
    """Names in a row, not all of them where they are many.

    >>> some(["a", "b"]), some("abcdef", 3), some([])
    ('a, b', 'a, b, c, ... (6)', 'none')
    """
    names = list(names)
    shown = names if len(names) <= most else [*names[:most], f"... ({len(names)})"]
    return ", ".join(shown) or "none"


def unusable(text: str) -> str | None:
    r"""Why this text cannot be trained on, or None where it can.

    A NUL is always an accident, and half of a surrogate pair is no character.

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
