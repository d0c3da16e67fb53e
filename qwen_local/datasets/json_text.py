"""A strict JSON reader that works on text of any length, chunk by chunk."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from qwen_local.datasets.faults import quoted, unusable
from qwen_local.errors import Fault

MAX_DEPTH = 64
"""Maximum nesting of lists and objects."""

LOOKAHEAD = 16
"""Number of characters after a value that must be present to be sure that the value ends there:
`12` could continue as `12.5`. JSON words and escapes are shorter than this."""

SPACE = re.compile(r"[ \t\r\n]*")


class InvalidJson(ValueError):
    """Raised where the text stops being valid JSON. Line and column count from 1."""

    def __init__(self, problem: str, line: int, column: int, rest: str) -> None:
        super().__init__(problem, line, column, rest)
        self.problem, self.line, self.column, self.rest = problem, line, column, rest


class ValueTooLong(ValueError):
    """Raised if a value exceeds the maximum length."""


class JsonCursor:
    """A cursor over JSON text that also records what Python's reader silently accepts.

    Args:
        text: first part of the text.
        more: following parts, read on demand.
        max_length: maximum number of characters of one value; 0 for no limit.
    """

    def __init__(self, text: str = "", more: Iterable[str] = (), *, max_length: int = 0) -> None:
        self.problems: list[tuple[str, str]] = []
        """(problem, hint) for everything in the last value that is not valid JSON."""
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
        )
        self._max_length = max_length
        self.start(text, more)

    def start(self, text: str, more: Iterable[str] = ()) -> None:
        """Start a new text."""
        self._text, self._position, self._more = text, 0, iter(more)
        # Reference point for line and column numbers, advanced when text is discarded.
        self._line, self._column, self._counted = 1, 0, 0

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in value if keys.count(key) > 1)
            problem = f"the key {quoted(twice)} occurs more than once in one object"
            self.problems.append((problem, "remove one of them"))
        return value

    def _float(self, text: str) -> float:
        value = float(text)
        if math.isinf(value):
            hint = "write a smaller number, or text"
            self.problems.append((f"the number {text} is too large", hint))
        return value

    def _constant(self, name: str) -> None:
        self.problems.append((f"{name} is not valid JSON", "write null or remove the key"))

    def line(self) -> int:
        """Return the line number of the cursor."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def at_end(self) -> bool:
        """Return True if only whitespace follows."""
        self._space()
        return self._position == len(self._text)

    def accept(self, mark: str) -> bool:
        """Skip this character if it comes next; return True if it does."""
        self._space()
        if not self._text.startswith(mark, self._position):
            return False
        self._position += 1
        return True

    def expect(self, mark: str) -> None:
        """Skip this character; raise `InvalidJson` if another one comes next."""
        if not self.accept(mark):
            raise self._not_json(f"Expecting {mark!r}", self._position)

    def expect_end(self) -> None:
        """Raise `InvalidJson` if anything but whitespace follows."""
        if not self.at_end():
            raise self._not_json("Extra data", self._position)

    def value(self) -> Any:
        """Read the next value.

        Raises:
            InvalidJson: the text is not valid JSON.
            ValueTooLong: the value exceeds `max_length`.
            RecursionError: the value is nested too deeply.
            ValueError: a number has too many digits.
        """
        self._space()
        while True:
            self.problems.clear()
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
        """Return True if more text could resolve the error."""
        unterminated = error.msg.startswith("Unterminated string")
        return unterminated or error.pos + LOOKAHEAD > len(self._text)

    def _read_on(self) -> bool:
        """Discard the text before the cursor and at least double the rest; False at the end.

        Doubling keeps the total work for a long value at twice its length.
        """
        before, kept = self._text[: self._position], self._text[self._position :]
        if len(kept) > self._max_length > 0:
            raise ValueTooLong(f"expected at most {self._max_length} characters in a record")
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
            assert match is not None  # the pattern also matches the empty string
            self._position = match.end()
            if self._position < len(self._text) or not self._read_on():
                return

    def _not_json(self, problem: str, position: int) -> InvalidJson:
        line = self.line() + self._text.count("\n", self._counted, position)
        newline = self._text.rfind("\n", 0, position)
        column = position - newline if newline >= 0 else self._column + position + 1
        rest = self._text[position:].lstrip()[:100].rstrip()
        return InvalidJson(problem, line, column, rest)


def parse_json(text: str) -> tuple[Any, list[tuple[str, str]]]:
    """Parse a text; also return (problem, hint) for what Python accepts but JSON does not.

    Raises:
        ValueError, RecursionError: see `JsonCursor.value`.
    """
    cursor = JsonCursor(text)
    value = cursor.value()
    cursor.expect_end()
    return value, cursor.problems


def json_fault(where: str, error: ValueError | RecursionError, hint: str | None = None) -> Fault:
    """Convert an error of this module to a fault."""
    match error:
        case RecursionError():
            return Fault(where, f"expected at most {MAX_DEPTH} levels of nesting")
        case ValueTooLong():
            return Fault(where, str(error))
        case InvalidJson():
            rest = quoted(error.rest) if error.rest else "the end"
            place = f"at column {error.column}"
            return Fault(where, f"not valid JSON: {error.problem} {place}; found {rest}", hint)
        case _:  # a number with more digits than Python converts
            return Fault(where, f"not valid JSON: {error}")


def unusable_text(value: object) -> Iterator[tuple[str, str, str | None]]:
    """Yield (field, problem, hint) for each text in a JSON value that cannot be trained on.

    The field is empty if the problem is the nesting of the whole value.
    """
    pending: list[tuple[str, object, int]] = [("", value, 0)]
    while pending:  # iterative, because the file controls the depth
        field, value, depth = pending.pop()
        if isinstance(value, str):
            if problem := unusable(value):
                yield field, problem, "remove it"
        elif depth > MAX_DEPTH:
            yield "", f"expected at most {MAX_DEPTH} levels of nesting", None
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
