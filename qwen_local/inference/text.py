"""Decode a stream of tokens: whole characters, with the reasoning separate from the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

OPEN, CLOSE = "<think>", "</think>"
HALF = "\N{REPLACEMENT CHARACTER}"
"""Decoded form of bytes that are not a complete character."""
LONGEST = 3
"""Maximum tokens in an incomplete character: UTF-8 has at most 4 bytes."""


class TextStream:
    """Decodes tokens one at a time, in whole characters.

    Some characters, such as emoji, take several tokens. The pieces together equal the text of all
    tokens decoded at once; the cost of a token does not grow with the text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Start with no text.

        Args:
            decode: returns the text of tokens, with U+FFFD for bytes that are not a character.
        """
        self._decode = decode
        self._ids: list[int] = []  # tokens after the last complete character
        self._shown = 0  # number of characters of their text that were returned

    def add(self, token: int) -> str:
        """Return the characters that this token completes."""
        if not self._decode([token]):
            return ""  # a control token has no text
        self._ids.append(token)
        text = self._decode(self._ids)
        settled = text.removesuffix(HALF)
        piece = settled[self._shown :]
        self._shown = len(settled)
        if settled == text:
            self._ids, self._shown = [], 0
        elif len(self._ids) > LONGEST:  # the incomplete character starts in the last ones
            self._ids = self._ids[-LONGEST:]
            self._shown = len(self._decode(self._ids)) - 1
        return piece

    def end(self) -> str:
        """Return the rest: a character that was never completed."""
        return self._decode(self._ids)[self._shown :]


class Thoughts:
    """Separates a leading `<think> ... </think>`, with its tags, from the answer after it."""

    def __init__(self, *, thinking: bool) -> None:
        """Start with no text.

        Args:
            thinking: True if the prompt ends within the block.
        """
        self._mark: str | None = CLOSE if thinking else OPEN  # the tag to look for; None for none
        self._rest = ""

    def add(self, text: str) -> list[tuple[bool, str]]:
        """Return (True for reasoning, text) for each part that is certain so far."""
        self._rest += text
        parts: list[tuple[bool, str]] = []
        if self._mark == OPEN:
            start = self._rest.lstrip()
            if start.startswith(OPEN):
                self._mark = CLOSE
            elif OPEN.startswith(start):
                return []  # it may become the tag
            else:
                self._mark = None
        if self._mark == CLOSE:
            before, mark, after = self._rest.partition(CLOSE)
            if mark:
                self._mark, self._rest = None, after
                parts.append((True, before + mark))
            else:
                held = _partial(self._rest, CLOSE)
                self._rest = before[len(before) - held :]
                parts.append((True, before[: len(before) - held]))
        if self._mark is None:
            parts.append((False, self._rest))
            self._rest = ""
        return [part for part in parts if part[1]]

    def end(self) -> list[tuple[bool, str]]:
        """Return the text that was held back."""
        return [(self._mark == CLOSE, self._rest)] if self._rest else []


def _partial(text: str, mark: str) -> int:
    """Return the number of characters at the end of a text that may start the tag."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
