"""Kinds of faults: messages without the values that differ between records."""

from __future__ import annotations

import re

QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
NUMBER = re.compile(r"\\u[0-9a-f]{4}|\d+")
NOT_A_VALUE = re.compile(r"(?:an? |half |null$|true$|false$|nothing$|UTF-|the end)")
"""Matches text after `found` that is not a value from the data."""
BLANK = "..."
MAX_KIND_LENGTH = 160


def kind_of(problem: str) -> str:
    """Replace the data's values in a problem by `...`.

    >>> kind_of("expected system, user or assistant; found 'bot'")
    'expected system, user or assistant; found ...'
    >>> kind_of("not valid JSON: Expecting ',' delimiter at column 17; found 'x'")
    "not valid JSON: Expecting ',' delimiter at column ...; found ..."
    >>> kind_of("expected at least one assistant message; found user, user")
    'expected at least one assistant message; found ...'
    >>> kind_of("expected text; found a NUL character (character 3)")
    'expected text; found a NUL character (character ...)'
    """
    expected, found, value = problem.partition("; found ")
    if found:
        value = _blanked(value) if NOT_A_VALUE.match(value) else BLANK
    kind = _blanked(expected) + found + value
    return kind if len(kind) <= MAX_KIND_LENGTH else kind[: MAX_KIND_LENGTH - len(BLANK)] + BLANK


def _blanked(text: str) -> str:
    """Blank numbers and quoted words; quoted punctuation such as ',' is part of the problem."""
    words = QUOTED.sub(
        lambda match: BLANK if any(map(str.isalnum, match[0])) else match[0],
        text,
    )
    return NUMBER.sub(BLANK, words)
