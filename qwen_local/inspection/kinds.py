"""Faults by kind: what they say, without what differs from one to the next."""

from __future__ import annotations

import re

QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
NUMBER = re.compile(r"\\u[0-9a-f]{4}|\d+")
FIXED = re.compile(r"(?:an? |half |null$|true$|false$|nothing$|UTF-|the end)")
"""What may stand behind `found` and is no value of the data."""
BLANK = "..."
LONGEST = 160


def kind_of(problem: str) -> str:
    """The problem with the values of the data blanked.

    >>> kind_of("expected system, user or assistant; found 'bot'")
    'expected system, user or assistant; found ...'
    >>> kind_of("not valid JSON: Expecting ',' delimiter at column 17; found 'x'")
    "not valid JSON: Expecting ',' delimiter at column ...; found ..."
    >>> kind_of("expected at least one assistant message; found user, user")
    'expected at least one assistant message; found ...'
    >>> kind_of("expected text; found a NUL character (character 3)")
    'expected text; found a NUL character (character ...)'
    """
    expected, found, seen = problem.partition("; found ")
    if found:
        seen = _blanked(seen) if FIXED.match(seen) else BLANK
    kind = _blanked(expected) + found + seen
    return kind if len(kind) <= LONGEST else kind[: LONGEST - len(BLANK)] + BLANK


def _blanked(text: str) -> str:
    """Numbers and quoted words blanked; quoted marks such as ',' belong to the problem."""
    words = QUOTED.sub(
        lambda match: BLANK if any(map(str.isalnum, match[0])) else match[0],
        text,
    )
    return NUMBER.sub(BLANK, words)
