"""Data files to records, each with the place it came from.

A reader never raises for what stands in a file. It yields, for each record, either the record or
the faults found in it, so that one pass finds them all and a limit counts both alike. None holds
more of a file than a record or a megabyte, whichever is more.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from qwen_local.datasets.faults import found, quoted
from qwen_local.datasets.json_text import Json, NotJson, malformed, unusable_text
from qwen_local.errors import Fault


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a data file, not looked into yet."""

    where: str
    """`train.jsonl:17`: the line, or the row of a file that has no lines."""
    value: Mapping[str, Any]
    filled: bool = field(default=False, compare=False)
    """Whether it is of a table, where each object has every key that any object there has, and null
    for those that are not its own."""


Faults = tuple[Fault, ...]
Records = Iterator[Record | Faults]

LONGEST_LINE = 16 * 2**20
"""Bytes of a JSONL line or a CSV row, characters of a record in a list: far above any context, far
below the memory."""

PIECE = 2**20
"""Bytes that are read at a time from a file without lines."""

MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
"""The byte order mark with which some editors begin a file; no part of the text."""

FOREIGN = {
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Suffixes that may follow that of a file of text, and the program that knows each."""


def kind_of_file(path: Path) -> str | None:
    """Which reader a file has, by its suffix; None where it has none.

    >>> kind_of_file(Path("train.jsonl.gz")), kind_of_file(Path("notes.md"))
    ('.jsonl', None)
    """
    kind = unpacked(path).suffix.lower()
    known = kind in READERS and not (kind == ".parquet" and path.suffix.lower() in COMPRESSED)
    return kind if known else None


def unpacked(path: Path) -> Path:
    """The name that a file has, or would have once it is unpacked.

    >>> unpacked(Path("train.jsonl.gz")).name
    'train.jsonl'
    """
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def read(path: Path) -> Records:
    """The records of a file of one of the kinds in `READERS`; the faults of it otherwise."""
    kind = kind_of_file(path)
    assert kind is not None  # sources.py names no other
    try:
        if problem := not_regular(path):
            yield (Fault(str(path), problem, "write the data to a file, and name that"),)
            return
        yield from READERS[kind](path)
    except _UnreadableError as error:
        yield (error.fault,)
    except OSError as error:
        yield (Fault(str(path), f"cannot be read: {error.strerror or error}"),)


def not_regular(path: Path) -> str | None:
    """What is wrong with a path that is no file: opening a pipe would wait for ever.

    Raises:
        OSError: it is not there.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return f"expected a regular file; found {kinds.get(stat.S_IFMT(mode), 'a device')}"


def checked(where: str, value: object, *, filled: bool = False) -> Record | Faults:
    """The record, if it is an object that holds nothing but usable text."""
    if not isinstance(value, dict):
        return (Fault(where, f"expected an object; found {found(value)}"),)
    faults = tuple(
        Fault(f"{where}: {field}" if field else where, problem, hint)
        for field, problem, hint in unusable_text(value)
    )
    return faults or Record(where, value, filled)


# --- bytes ---


class _UnreadableError(Exception):
    """From here on nothing of the file can be read."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def _open(path: Path) -> BinaryIO:
    """The file, unpacked where it is compressed; neither way holds more of it than a window."""
    match COMPRESSED.get(path.suffix.lower()):
        case "gzip":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case "zstd":
            import pyarrow as pa  # type: ignore[import-untyped]

            return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression="zstd")))
        case _:
            return path.open("rb")


DAMAGE = (EOFError, OSError, zlib.error)
"""What reading raises where a compressed file is cut short or damaged, or the disk fails."""


def _damaged(path: Path, line: int, error: Exception) -> _UnreadableError:
    said = getattr(error, "strerror", None)
    if said or path.suffix.lower() not in COMPRESSED:
        return _UnreadableError(Fault(f"{path}:{line}", f"cannot be read: {said or error}"))
    program = COMPRESSED[path.suffix.lower()]
    reason = str(error).partition("\n")[0]
    cut = isinstance(error, EOFError) or "runcated" in reason
    problem = "the file is cut short" if cut else f"damaged, or not compressed: {reason}"
    hint = f"copy the file again; `{program} -t FILE` tests it"
    return _UnreadableError(Fault(f"{path}:{line}", f"cannot be unpacked: {problem}", hint))


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number, offset, bytes) of each line; of one that is too long, one byte too many."""
    number, offset = 0, 0
    with _open(path) as file:
        while True:
            try:
                line = file.readline(LONGEST_LINE + 1)
                start, offset = offset, offset + len(line)
                rest = line
                while len(line) > LONGEST_LINE and rest and not rest.endswith(b"\n"):
                    rest = file.readline(LONGEST_LINE)
                    offset += len(rest)
            except DAMAGE as error:
                raise _damaged(path, number + 1, error) from None
            if not line:
                return
            number += 1
            yield number, start, line


def _texts(path: Path) -> Iterator[str]:
    """The text of the whole file in pieces, without a byte order mark."""
    line, offset, rest = 1, 0, b""
    with _open(path) as file:
        while True:
            try:
                data = file.read(PIECE)
            except DAMAGE as error:
                raise _damaged(path, line, error) from None
            block = rest + data
            try:
                text, used = codecs.utf_8_decode(block, "strict", not data)
            except UnicodeDecodeError as error:
                raise _UnreadableError(_wrong_encoding(path, error, line, offset)) from None
            yield text.removeprefix(MARK) if offset == 0 else text
            if not data:
                return
            line, offset, rest = line + text.count("\n"), offset + used, block[used:]


# --- encoding ---


def _foreign(head: bytes) -> str | None:
    return next((name for mark, name in FOREIGN.items() if head.startswith(mark)), None)


def _wrong_encoding(path: Path, error: UnicodeDecodeError, line: int = 1, offset: int = 0) -> Fault:
    """The fault of bytes that are not UTF-8; they begin at this line and offset of the text."""
    data = error.object
    if foreign := _foreign(data) if offset == 0 else None:
        program = COMPRESSED.get(path.suffix.lower())
        plain = unpacked(path)
        target = f"{plain.stem}.utf8{plain.suffix}"
        convert = f"iconv -f {foreign} -t UTF-8"
        how = f"{program} -dc {path} | {convert}" if program else f"{convert} {path}"
        problem = f"expected UTF-8; found {foreign} (its mark is at byte 0)"
        return Fault(f"{path}:1", problem, f"convert it: {how} > {target}")
    line += data.count(b"\n", 0, error.start)
    byte = f"byte 0x{data[error.start]:02x} at offset {offset + error.start}"
    hint = "save the file as UTF-8 (it may be Latin-1 or Windows-1252 now)"
    return Fault(f"{path}:{line}", f"expected UTF-8; found {byte}", hint)


# --- JSON ---

LINE_HINT = 'write one object a line, such as {"prompt": "Hi", "completion": "Hello."}'
FILE_HINT = "`python -m json.tool FILE` points at the same place"


def _record(cursor: Json, where: str) -> Record | Faults:
    """The record that comes next."""
    value = cursor.value()
    if cursor.noted:
        return tuple(Fault(where, problem, hint) for problem, hint in cursor.noted)
    return checked(where, value)


def _jsonl(path: Path) -> Records:
    cursor = Json()
    for number, start, line in _lines(path):
        where = f"{path}:{number}"
        if len(line) > LONGEST_LINE:
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
        cursor.begin(text)
        try:
            record = _record(cursor, where)
            cursor.must_end()
        except (ValueError, RecursionError) as error:
            yield (malformed(where, error, LINE_HINT),)
        else:
            yield record


def _json(path: Path) -> Records:
    cursor = Json(more=_texts(path), longest=LONGEST_LINE)
    try:
        if cursor.at_end():
            return
        if cursor.takes("["):
            yield from _elements(cursor, path)
        else:
            yield from _only_list(cursor, path)
        cursor.must_end()
    except NotJson as error:
        yield (malformed(f"{path}:{error.line}", error, FILE_HINT),)
    except (ValueError, RecursionError) as error:
        yield (malformed(f"{path}:{cursor.line()}", error, FILE_HINT),)


def _elements(cursor: Json, path: Path) -> Records:
    """The records of a list whose opening bracket is read."""
    if cursor.takes("]"):
        return
    while True:
        cursor.at_end()  # steps over white space, so that the line is that of the record
        yield _record(cursor, f"{path}:{cursor.line()}")
        if not cursor.takes(","):
            break
    cursor.must_take("]")


def _only_list(cursor: Json, path: Path) -> Records:
    """The records of the only list among the members of an object.

    Whether it is the only one is known at the end: the file is read twice, which needs no memory.
    """
    keys = []
    for key in _lists(cursor):
        keys.append(key)
        for _ in _elements(cursor, path):
            pass
    if len(keys) == 1:
        again = Json(more=_texts(path), longest=LONGEST_LINE)
        for _ in _lists(again):
            yield from _elements(again, path)
        return
    seen = ", ".join(keys) or "none"
    problem = f"expected a list of records, or an object with one list in it; found {seen}"
    yield (Fault(str(path), problem, "write each list of records to a file of its own"),)


def _lists(cursor: Json) -> Iterator[str]:
    """The keys of the lists in an object. Whoever asks for the next has read the elements."""
    cursor.must_take("{")
    while not cursor.takes("}"):
        key = str(cursor.value())
        cursor.must_take(":")
        if cursor.takes("["):
            yield key
        else:
            cursor.value()
        if not cursor.takes(","):
            cursor.must_take("}")
            return


# --- tables ---


class _Table:
    """The lines of a CSV file, of which only so many bytes may go into one row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.begin(1)

    def begin(self, line: int) -> None:
        """A row begins on this line."""
        self._line, self._room = line, LONGEST_LINE

    def __iter__(self) -> Iterator[str]:
        for number, start, line in _lines(self._path):
            self._room -= len(line)
            if self._room < 0:
                problem = f"expected at most {LONGEST_LINE} bytes in a row"
                hint = "look for a double quote that is not closed"
                raise _UnreadableError(Fault(f"{self._path}:{self._line}", problem, hint))
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                fault = _wrong_encoding(self._path, error, number, start)
                raise _UnreadableError(fault) from None
            text = text.removeprefix(MARK) if start == 0 else text
            # A carriage return ends a line, too.
            yield from io.StringIO(text, newline="") if "\r" in text else (text,)


def _csv(path: Path) -> Records:
    csv.field_size_limit(LONGEST_LINE)  # Python's own limit is shorter than a long answer
    table = _Table(path)
    rows = csv.reader(table, strict=True)
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
        table.begin(line)
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
    import pyarrow as pa
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
                    yield checked(f"{path}:{number}", value, filled=True)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        problem = f"cannot be read as Parquet: {str(error).splitlines()[0]}"
        yield (Fault(f"{path}:{number + 1}", problem),)


READERS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
