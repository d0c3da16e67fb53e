"""JSON text read strictly, a piece at a time, however long the whole is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from qwen_local.datasets.faults import quoted, unusable
from qwen_local.errors import Fault

DEEPEST = 64
"""Levels of lists and objects inside each other."""

LOOKAHEAD = 16
"""Characters that settle whether a value is over: of `12`, `12.5` and `12e+5` each begins the next,
and no word of JSON, nor an escape, is as long."""

SPACE = re.compile(r"[ \t\r\n]*")


class NotJson(ValueError):
    """The text is no JSON from here on. Line and column count from 1."""

    def __init__(self, problem: str, line: int, column: int, rest: str) -> None:
        super().__init__(problem, line, column, rest)
        self.problem, self.line, self.column, self.rest = problem, line, column, rest


class TooLong(ValueError):
    """A value is longer than we are willing to hold."""


class Json:
    """A cursor over JSON text that notes what Python's reader lets pass in silence.

    Args:
        text: its beginning.
        more: what follows, in pieces; read only where the cursor needs them.
        longest: characters of one value; beyond, `TooLong` is raised.
    """

    def __init__(self, text: str = "", more: Iterable[str] = (), *, longest: int = 0) -> None:
        self.noted: list[tuple[str, str]] = []
        """(problem, hint) of what the last value holds that is no JSON."""
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
        )
        self._longest = longest
        self.begin(text, more)

    def begin(self, text: str, more: Iterable[str] = ()) -> None:
        """Another text."""
        self._text, self._position, self._more = text, 0, iter(more)
        # The place of a character is told from here: lines before, characters of its line before.
        self._line, self._column, self._counted = 1, 0, 0

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in value if keys.count(key) > 1)
            problem = f"the key {quoted(twice)} occurs more than once in one object"
            self.noted.append((problem, "keep one of them"))
        return value

    def _float(self, text: str) -> float:
        value = float(text)
        if math.isinf(value):
            self.noted.append((f"{text} is too large for a number", "write a smaller one, or text"))
        return value

    def _constant(self, name: str) -> None:
        self.noted.append((f"{name} is not JSON", "write null, or leave the key out"))

    def line(self) -> int:
        """The line on which the cursor stands."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def at_end(self) -> bool:
        """Whether nothing but white space follows."""
        self._space()
        return self._position == len(self._text)

    def takes(self, mark: str) -> bool:
        """Steps over this character, if it comes next."""
        self._space()
        if not self._text.startswith(mark, self._position):
            return False
        self._position += 1
        return True

    def must_take(self, mark: str) -> None:
        """Steps over this character; nothing else is right here."""
        if not self.takes(mark):
            raise self._not_json(f"Expecting {mark!r}", self._position)

    def must_end(self) -> None:
        """Nothing may follow."""
        if not self.at_end():
            raise self._not_json("Extra data", self._position)

    def value(self) -> Any:
        """The value that comes next.

        Raises:
            NotJson, TooLong, RecursionError: nested too deeply; ValueError: a number too long.
        """
        self._space()
        while True:
            self.noted.clear()
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._is_cut_off(error) and self._read_on():
                    continue
                raise self._not_json(error.msg, error.pos) from None
            length = end - self._position
            if end + LOOKAHEAD <= len(self._text) or not self._read_on():
                self._position += length
                return value

    def _is_cut_off(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could mend it: the reader goes from left to right."""
        unterminated = error.msg.startswith("Unterminated string")
        return unterminated or error.pos + LOOKAHEAD > len(self._text)

    def _read_on(self) -> bool:
        """Forgets what is behind the cursor and reads as much again as is left; False at the end.

        Twice as much each time: the attempts on a long value add up to twice its length.
        """
        before, kept = self._text[: self._position], self._text[self._position :]
        if len(kept) > self._longest > 0:
            raise TooLong(f"expected at most {self._longest} characters in a record")
        self.line()
        ended = before.rfind("\n")
        self._column = self._column + len(before) if ended < 0 else len(before) - ended - 1
        pieces, size = [kept], 0
        for piece in self._more:
            pieces.append(piece)
            size += len(piece)
            if size > len(kept):
                break
        self._text, self._position, self._counted = "".join(pieces), 0, 0
        return size > 0

    def _space(self) -> None:
        while True:
            match = SPACE.match(self._text, self._position)
            assert match is not None  # the pattern also matches nothing
            self._position = match.end()
            if self._position < len(self._text) or not self._read_on():
                return

    def _not_json(self, problem: str, position: int) -> NotJson:
        line = self.line() + self._text.count("\n", self._counted, position)
        newline = self._text.rfind("\n", 0, position)
        column = position - newline if newline >= 0 else self._column + position + 1
        rest = self._text[position:].lstrip()[:100].rstrip()
        return NotJson(problem, line, column, rest)


def whole(text: str) -> tuple[Any, list[tuple[str, str]]]:
    """The value that a text is, and (problem, hint) of what in it is no JSON after all.

    Raises:
        ValueError, RecursionError: as `Json.value`.
    """
    cursor = Json(text)
    value = cursor.value()
    cursor.must_end()
    return value, cursor.noted


def malformed(where: str, error: ValueError | RecursionError, hint: str | None = None) -> Fault:
    """The fault that an error of this module is."""
    match error:
        case RecursionError():
            return Fault(where, f"expected at most {DEEPEST} levels of nesting")
        case TooLong():
            return Fault(where, str(error))
        case NotJson():
            seen = quoted(error.rest) if error.rest else "the end"
            place = f"at column {error.column}"
            return Fault(where, f"not valid JSON: {error.problem} {place}; found {seen}", hint)
        case _:  # a number with thousands of digits
            return Fault(where, f"not valid JSON: {error}")


def unusable_text(value: object) -> Iterator[tuple[str, str, str | None]]:
    """(field, problem, hint) of each text in a JSON value that cannot be trained on.

    The field is the empty string where it is the value as a whole, which is nested too deeply.
    """
    pending: list[tuple[str, object, int]] = [("", value, 0)]
    while pending:  # no recursion: how deep a file goes is not for us to say
        field, value, depth = pending.pop()
        if isinstance(value, str):
            if problem := unusable(value):
                yield field, problem, "remove it"
        elif depth > DEEPEST:
            yield "", f"expected at most {DEEPEST} levels of nesting", None
            return
        elif isinstance(value, dict):
            names = [key if key.isprintable() else repr(key) for key in value]
            inside = [
                (f"{field}.{name}".lstrip("."), item)
                for name, item in zip(names, value.values(), strict=True)
            ]
            inside += [("a key", key) for key in value]
            pending += [(name, item, depth + 1) for name, item in reversed(inside)]
        elif isinstance(value, list):
            inside = [(f"{field}[{index}]", item) for index, item in enumerate(value)]
            pending += [(name, item, depth + 1) for name, item in reversed(inside)]
