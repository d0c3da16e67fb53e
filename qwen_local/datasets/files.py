"""Data files to records, each with the place it came from.

A reader never raises for what stands in a file. It yields, for each record, either the record or
the faults found in it, so that one pass finds them all and a limit counts both alike.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_local.datasets.faults import found, quoted, unusable
from qwen_local.errors import Fault


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a data file, not looked into yet."""

    where: str
    """`train.jsonl:17`: the line, or the row of a file that has no lines."""
    value: Mapping[str, Any]


Faults = tuple[Fault, ...]
Records = Iterator[Record | Faults]

LONGEST_LINE = 16 * 2**20
"""Bytes of one JSONL line or CSV field: far above any context, far below the memory."""

DEEPEST = 64
"""Levels of lists and objects inside each other."""

MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
"""The byte order mark with which some editors begin a file; no part of the text."""

FOREIGN = {
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read(path: Path) -> Records:
    """The records of a file of one of the kinds in `READERS`; the faults of it otherwise."""
    try:
        yield from READERS[path.suffix.lower()](path)
    except OSError as error:
        yield (Fault(str(path), f"cannot be read: {error.strerror or error}"),)


def checked(where: str, value: object) -> Record | Faults:
    """The record, if it is an object that holds nothing but usable text."""
    if not isinstance(value, dict):
        return (Fault(where, f"expected an object; found {found(value)}"),)
    faults = tuple(_unusable_text(where, value))
    return faults or Record(where, value)


def _unusable_text(where: str, record: dict[str, Any]) -> Iterator[Fault]:
    pending: list[tuple[str, object, int]] = [("", record, 0)]
    while pending:  # no recursion: how deep a file goes is not for us to say
        field, value, depth = pending.pop()
        if isinstance(value, str):
            if problem := unusable(value):
                yield Fault(f"{where}: {field}", problem, "remove it")
        elif depth > DEEPEST:
            yield Fault(where, f"expected at most {DEEPEST} levels of nesting")
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


# --- encoding ---


def _foreign(head: bytes) -> str | None:
    return next((name for mark, name in FOREIGN.items() if head.startswith(mark)), None)


def _wrong_encoding(path: Path, error: UnicodeDecodeError, line: int = 1, offset: int = 0) -> Fault:
    """The fault of bytes that are not UTF-8; they begin at this line and offset of the file."""
    data = error.object
    if foreign := _foreign(data) if offset == 0 else None:
        hint = f"convert it: iconv -f {foreign} -t UTF-8 {path} > {path.stem}.utf8{path.suffix}"
        return Fault(f"{path}:1", f"expected UTF-8; found {foreign} (its mark is at byte 0)", hint)
    line += data.count(b"\n", 0, error.start)
    byte = f"byte 0x{data[error.start]:02x} at offset {offset + error.start}"
    hint = "save the file as UTF-8 (it may be Latin-1 or Windows-1252 now)"
    return Fault(f"{path}:{line}", f"expected UTF-8; found {byte}", hint)


def _text(path: Path) -> str | Fault:
    """The whole file as text, without a byte order mark."""
    try:
        return path.read_bytes().decode().removeprefix(MARK)
    except UnicodeDecodeError as error:
        return _wrong_encoding(path, error)


# --- JSON ---


SPACE = re.compile(r"[ \t\r\n]*")


class _Json:
    """A cursor over JSON text that notes what Python's reader lets pass in silence."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0
        self._line, self._counted = 1, 0
        self._noted: list[tuple[str, str]] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant
        )

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in value if keys.count(key) > 1)
            problem = f"the key {quoted(twice)} occurs more than once in one object"
            self._noted.append((problem, "keep one of them"))
        return value

    def _constant(self, name: str) -> None:
        self._noted.append((f"{name} is not JSON", "write null, or leave the key out"))

    def line(self) -> int:
        """The line on which the cursor stands."""
        self._line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    def space(self) -> None:
        """Steps over white space."""
        match = SPACE.match(self.text, self.position)
        assert match is not None  # the pattern also matches nothing
        self.position = match.end()

    def takes(self, mark: str) -> bool:
        """Steps over this mark, if it comes next."""
        self.space()
        if not self.text.startswith(mark, self.position):
            return False
        self.position += len(mark)
        return True

    def must_take(self, mark: str) -> None:
        """Steps over this mark; nothing else is right here."""
        if not self.takes(mark):
            raise json.JSONDecodeError(f"Expecting {mark!r}", self.text, self.position)

    def must_end(self) -> None:
        """Nothing may follow."""
        self.space()
        if self.position < len(self.text):
            raise json.JSONDecodeError("Extra data", self.text, self.position)

    def value(self) -> Any:
        """The value that comes next."""
        self.space()
        value, self.position = self._decoder.raw_decode(self.text, self.position)
        return value

    def record(self, where: str) -> Record | Faults:
        """The record that comes next."""
        self._noted.clear()
        value = self.value()
        if self._noted:
            return tuple(Fault(where, problem, hint) for problem, hint in self._noted)
        return checked(where, value)


def _malformed(where: str, error: ValueError | RecursionError, hint: str) -> Fault:
    if isinstance(error, RecursionError):
        return Fault(where, f"expected at most {DEEPEST} levels of nesting")
    if not isinstance(error, json.JSONDecodeError):  # a number with thousands of digits
        return Fault(where, f"not valid JSON: {error}")
    rest = error.doc[error.pos :].strip()
    seen = quoted(rest) if rest else "the end"
    return Fault(where, f"not valid JSON: {error.msg} at column {error.colno}; found {seen}", hint)


LINE_HINT = 'write one object a line, such as {"prompt": "Hi", "completion": "Hello."}'
FILE_HINT = "`python -m json.tool FILE` points at the same place"


def _jsonl(path: Path) -> Records:
    with path.open("rb") as file:
        number, offset = 0, 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{path}:{number}"
            start, offset = offset, offset + len(line)
            if len(line) > LONGEST_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE)
                    offset += len(line)
                problem = f"expected at most {LONGEST_LINE} bytes on a line"
                yield (Fault(where, problem, LINE_HINT),)
                continue
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                yield (_wrong_encoding(path, error, number, start),)
                if start == 0 and _foreign(line):
                    return  # the other lines would only say the same
                continue
            if start == 0:
                text = text.removeprefix(MARK)
            text = text.rstrip(" \t\r\n")
            if not text:
                continue
            cursor = _Json(text)
            try:
                record = cursor.record(where)
                cursor.must_end()
            except (ValueError, RecursionError) as error:
                yield (_malformed(where, error, LINE_HINT),)
            else:
                yield record


def _json(path: Path) -> Records:
    text = _text(path)
    if isinstance(text, Fault):
        yield (text,)
        return
    cursor = _Json(text)
    cursor.space()
    if cursor.position == len(text):
        return
    try:
        if cursor.takes("["):
            yield from _elements(cursor, path)
        else:
            yield from _only_list(cursor, path)
        cursor.must_end()
    except json.JSONDecodeError as error:
        yield (_malformed(f"{path}:{error.lineno}", error, FILE_HINT),)
    except (ValueError, RecursionError) as error:
        yield (_malformed(f"{path}:{cursor.line()}", error, FILE_HINT),)


def _elements(cursor: _Json, path: Path) -> Records:
    """The records of a list whose opening bracket is read."""
    if cursor.takes("]"):
        return
    while True:
        cursor.space()
        yield cursor.record(f"{path}:{cursor.line()}")
        if not cursor.takes(","):
            break
    cursor.must_take("]")


def _only_list(cursor: _Json, path: Path) -> Records:
    """The records of the only list among the members of an object."""
    lists: list[tuple[str, list[Record | Faults]]] = []
    cursor.must_take("{")
    while not cursor.takes("}"):
        cursor.space()
        key = cursor.value()
        cursor.must_take(":")
        if cursor.takes("["):
            lists.append((str(key), list(_elements(cursor, path))))
        else:
            cursor.value()
        if not cursor.takes(","):
            cursor.must_take("}")
            break
    if len(lists) == 1:
        yield from lists[0][1]
        return
    keys = ", ".join(key for key, _ in lists) or "none"
    problem = f"expected a list of records, or an object with one list in it; found {keys}"
    yield (Fault(str(path), problem, "write each list of records to a file of its own"),)


# --- tables ---


def _csv(path: Path) -> Records:
    text = _text(path)
    if isinstance(text, Fault):
        yield (text,)
        return
    csv.field_size_limit(LONGEST_LINE)  # Python's own limit is shorter than a long answer
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1  # where the row begins: a quoted field may run over several lines
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield (Fault(f"{path}:{line}", f"not valid CSV: {error}"),)
            return
        if row is None:
            return
        where, line = f"{path}:{line}", rows.line_num + 1
        if not row:
            continue
        if header is None:
            header = row
            if len(set(header)) < len(header) or "" in header:
                names = ", ".join(map(quoted, header))
                problem = f"expected a header of different column names; found {names}"
                yield (Fault(where, problem, "name the columns in the first line"),)
                return
        elif len(row) != len(header):
            problem = f"expected {len(header)} fields, as in the header; found {len(row)}"
            yield (Fault(where, problem, "put a field that holds a comma into double quotes"),)
        else:
            yield checked(where, dict(zip(header, row, strict=True)))


def _parquet(path: Path) -> Records:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if twice := sorted({name for name in columns if columns.count(name) > 1}):
                problem = f"expected each column once; found several named {', '.join(twice)}"
                yield (Fault(str(path), problem, "rename or remove all but one"),)
                return
            for batch in file.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield checked(f"{path}:{number}", value)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        problem = f"cannot be read as Parquet: {str(error).splitlines()[0]}"
        yield (Fault(f"{path}:{number + 1}", problem),)


READERS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
