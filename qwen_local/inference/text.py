"""Text as a model writes it, token by token: whole characters, thoughts told from the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

OPEN, CLOSE = "<think>", "</think>"
HALF = "\N{REPLACEMENT CHARACTER}"
"""What decoding makes of bytes that are no character, or not yet."""
LONGEST = 3
"""Tokens that the beginning of a character can have: UTF-8 has at most 4 bytes."""


class TextStream:
    """The text of tokens as they come, never half a character.

    Wide characters and emoji come as several tokens. All pieces together are what decoding all
    tokens at once gives; what one token costs does not grow with the text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Begin with no text.

        Args:
            decode: the text of tokens, bytes that are no character replaced by U+FFFD.
        """
        self._decode = decode
        self._ids: list[int] = []  # of the text behind the last settled character
        self._shown = 0  # characters of their text that were given out

    def add(self, token: int) -> str:
        """The characters that this token completes."""
        if not self._decode([token]):
            return ""  # a control token, which has no text
        self._ids.append(token)
        text = self._decode(self._ids)
        settled = text.removesuffix(HALF)
        piece = settled[self._shown :]
        self._shown = len(settled)
        if settled == text:
            self._ids, self._shown = [], 0
        elif len(self._ids) > LONGEST:  # the half character begins among the last of them
            self._ids = self._ids[-LONGEST:]
            self._shown = len(self._decode(self._ids)) - 1
        return piece

    def end(self) -> str:
        """What is left: a character that was never completed."""
        return self._decode(self._ids)[self._shown :]


class Thoughts:
    """Tells a leading `<think> ... </think>`, its marks included, from the answer behind it."""

    def __init__(self, *, thinking: bool) -> None:
        """Begin.

        Args:
            thinking: whether the prompt has opened the block already.
        """
        self._mark: str | None = CLOSE if thinking else OPEN  # what would come next; None: nothing
        self._rest = ""

    def add(self, text: str) -> list[tuple[bool, str]]:
        """(whether it is thought, text) for each part of the text so far that is told apart."""
        self._rest += text
        parts: list[tuple[bool, str]] = []
        if self._mark == OPEN:
            begun = self._rest.lstrip()
            if begun.startswith(OPEN):
                self._mark = CLOSE
            elif OPEN.startswith(begun):
                return []  # it may become one
            else:
                self._mark = None
        if self._mark == CLOSE:
            before, mark, after = self._rest.partition(CLOSE)
            if mark:
                self._mark, self._rest = None, after
                parts.append((True, before + mark))
            else:
                held = _begun(self._rest, CLOSE)
                self._rest = before[len(before) - held :]
                parts.append((True, before[: len(before) - held]))
        if self._mark is None:
            parts.append((False, self._rest))
            self._rest = ""
        return [part for part in parts if part[1]]

    def end(self) -> list[tuple[bool, str]]:
        """What was held back."""
        return [(self._mark == CLOSE, self._rest)] if self._rest else []


def _begun(text: str, mark: str) -> int:
    """How many characters at the end of a text may be the beginning of the mark."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
