"""Read data files into records with their places.

Readers never raise an error for the content of a file. For each record they yield either the record
or its faults, so that one pass finds all faults and a limit counts valid and invalid records alike.
A reader holds at most one record or one megabyte in memory, whichever is larger.
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
from qwen_local.datasets.json_text import InvalidJson, JsonCursor, json_fault, unusable_text
from qwen_local.errors import Fault


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a data file, before its format is known."""

    where: str
    """Place such as `train.jsonl:17`: the line, or the row number if the file has no lines."""
    value: Mapping[str, Any]
    filled: bool = field(default=False, compare=False)
    """True if the record is from a table, which adds null for keys that only other rows have."""


Faults = tuple[Fault, ...]
Records = Iterator[Record | Faults]

MAX_LINE_BYTES = 16 * 2**20
"""Maximum bytes of a JSONL line or CSV row, and maximum characters of a record in a list. Far above
any context length and far below the memory size."""

READ_CHUNK_BYTES = 2**20
"""Bytes per read from a file without lines."""

BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
"""Mark at the start of a file that some editors write; not part of the text."""

OTHER_ENCODINGS = {
    # UTF-32 comes first, because its little-endian mark starts with the UTF-16 mark.
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Program for each compression suffix of a text file."""


def kind_of_file(path: Path) -> str | None:
    """Return the key of `READERS` for a file, or None if its suffix is not supported.

    >>> kind_of_file(Path("train.jsonl.gz")), kind_of_file(Path("notes.md"))
    ('.jsonl', None)
    """
    kind = unpacked(path).suffix.lower()
    known = kind in READERS and not (kind == ".parquet" and path.suffix.lower() in COMPRESSED)
    return kind if known else None


def unpacked(path: Path) -> Path:
    """Return the path without a compression suffix.

    >>> unpacked(Path("train.jsonl.gz")).name
    'train.jsonl'
    """
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def read(path: Path) -> Records:
    """Yield the records or faults of a file with a suffix in `READERS`."""
    kind = kind_of_file(path)
    assert kind is not None  # checked in sources.py
    try:
        if problem := not_regular(path):
            yield (Fault(str(path), problem, "write the data to a file and use its path"),)
            return
        yield from READERS[kind](path)
    except _UnreadableError as error:
        yield (error.fault,)
    except OSError as error:
        yield (Fault(str(path), f"cannot be read: {error.strerror or error}"),)


def not_regular(path: Path) -> str | None:
    """Return the problem if the path is not a regular file; opening a pipe would block forever.

    Raises:
        OSError: the path does not exist.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return f"expected a regular file; found {kinds.get(stat.S_IFMT(mode), 'a device')}"


def checked(where: str, value: object, *, filled: bool = False) -> Record | Faults:
    """Return the record if it is an object with valid text, else its faults."""
    if not isinstance(value, dict):
        return (Fault(where, f"expected an object; found {found(value)}"),)
    faults = tuple(
        Fault(f"{where}: {field}" if field else where, problem, hint)
        for field, problem, hint in unusable_text(value)
    )
    return faults or Record(where, value, filled)


# --- bytes ---


class _UnreadableError(Exception):
    """Raised if the rest of the file cannot be read."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


def _open(path: Path) -> BinaryIO:
    """Open the file, decompressing it as a stream if needed."""
    match COMPRESSED.get(path.suffix.lower()):
        case "gzip":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case "zstd":
            import pyarrow as pa  # type: ignore[import-untyped]

            return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression="zstd")))
        case _:
            return path.open("rb")


READ_ERRORS = (EOFError, OSError, zlib.error)
"""Errors of reading if a compressed file is truncated or damaged, or the disk fails."""


def _damaged(path: Path, line: int, error: Exception) -> _UnreadableError:
    system_error = getattr(error, "strerror", None)
    if system_error or path.suffix.lower() not in COMPRESSED:
        problem = f"cannot be read: {system_error or error}"
        return _UnreadableError(Fault(f"{path}:{line}", problem))
    program = COMPRESSED[path.suffix.lower()]
    reason = str(error).partition("\n")[0]
    cut = isinstance(error, EOFError) or "runcated" in reason
    problem = "the file is truncated" if cut else f"damaged or not compressed: {reason}"
    hint = f"copy the file again; `{program} -t FILE` tests it"
    return _UnreadableError(Fault(f"{path}:{line}", f"cannot be decompressed: {problem}", hint))


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (number, offset, bytes) of each line; an overlong line is cut."""
    number, offset = 0, 0
    with _open(path) as file:
        while True:
            try:
                line = file.readline(MAX_LINE_BYTES + 1)
                start, offset = offset, offset + len(line)
                rest = line
                while len(line) > MAX_LINE_BYTES and rest and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE_BYTES)
                    offset += len(rest)
            except READ_ERRORS as error:
                raise _damaged(path, number + 1, error) from None
            if not line:
                return
            number += 1
            yield number, start, line


def _texts(path: Path) -> Iterator[str]:
    """Yield the text of the file in chunks, without a byte order mark."""
    line, offset, rest = 1, 0, b""
    with _open(path) as file:
        while True:
            try:
                data = file.read(READ_CHUNK_BYTES)
            except READ_ERRORS as error:
                raise _damaged(path, line, error) from None
            block = rest + data
            try:
                text, used = codecs.utf_8_decode(block, "strict", not data)
            except UnicodeDecodeError as error:
                raise _UnreadableError(_wrong_encoding(path, error, line, offset)) from None
            yield text.removeprefix(BYTE_ORDER_MARK) if offset == 0 else text
            if not data:
                return
            line, offset, rest = line + text.count("\n"), offset + used, block[used:]


# --- encoding ---


def _other_encoding(head: bytes) -> str | None:
    return next((name for mark, name in OTHER_ENCODINGS.items() if head.startswith(mark)), None)


def _wrong_encoding(path: Path, error: UnicodeDecodeError, line: int = 1, offset: int = 0) -> Fault:
    """Make the fault for bytes that are not UTF-8; they start at this line and offset."""
    data = error.object
    if encoding := _other_encoding(data) if offset == 0 else None:
        program = COMPRESSED.get(path.suffix.lower())
        plain = unpacked(path)
        target = f"{plain.stem}.utf8{plain.suffix}"
        convert = f"iconv -f {encoding} -t UTF-8"
        how = f"{program} -dc {path} | {convert}" if program else f"{convert} {path}"
        problem = f"expected UTF-8; found {encoding} (byte order mark at byte 0)"
        return Fault(f"{path}:1", problem, f"convert it: {how} > {target}")
    line += data.count(b"\n", 0, error.start)
    byte = f"byte 0x{data[error.start]:02x} at offset {offset + error.start}"
    hint = "save the file as UTF-8 (it may be Latin-1 or Windows-1252)"
    return Fault(f"{path}:{line}", f"expected UTF-8; found {byte}", hint)


# --- JSON ---

LINE_HINT = 'write one object per line, such as {"prompt": "Hi", "completion": "Hello."}'
FILE_HINT = "`python -m json.tool FILE` reports the same place"


def _record(cursor: JsonCursor, where: str) -> Record | Faults:
    """Read the next record or its faults."""
    value = cursor.value()
    if cursor.problems:
        return tuple(Fault(where, problem, hint) for problem, hint in cursor.problems)
    return checked(where, value)


def _jsonl(path: Path) -> Records:
    cursor = JsonCursor()
    for number, start, line in _lines(path):
        where = f"{path}:{number}"
        if len(line) > MAX_LINE_BYTES:
            problem = f"expected at most {MAX_LINE_BYTES} bytes on a line"
            yield (Fault(where, problem, LINE_HINT),)
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield (_wrong_encoding(path, error, number, start),)
            if start == 0 and _other_encoding(line):
                return  # every other line would have the same fault
            continue
        if start == 0:
            text = text.removeprefix(BYTE_ORDER_MARK)
        text = text.rstrip(" \t\r\n")
        if not text:
            continue
        cursor.start(text)
        try:
            record = _record(cursor, where)
            cursor.expect_end()
        except (ValueError, RecursionError) as error:
            yield (json_fault(where, error, LINE_HINT),)
        else:
            yield record


def _json(path: Path) -> Records:
    cursor = JsonCursor(more=_texts(path), max_length=MAX_LINE_BYTES)
    try:
        if cursor.at_end():
            return
        if cursor.accept("["):
            yield from _elements(cursor, path)
        else:
            yield from _only_list(cursor, path)
        cursor.expect_end()
    except InvalidJson as error:
        yield (json_fault(f"{path}:{error.line}", error, FILE_HINT),)
    except (ValueError, RecursionError) as error:
        yield (json_fault(f"{path}:{cursor.line()}", error, FILE_HINT),)


def _elements(cursor: JsonCursor, path: Path) -> Records:
    """Yield the records of a list after its opening bracket."""
    if cursor.accept("]"):
        return
    while True:
        cursor.at_end()  # skips whitespace, so that `line` is the line of the record
        yield _record(cursor, f"{path}:{cursor.line()}")
        if not cursor.accept(","):
            break
    cursor.expect("]")


def _only_list(cursor: JsonCursor, path: Path) -> Records:
    """Yield the records of the only list among the members of an object.

    The file is read twice, because only the end shows that there is no other list.
    """
    keys = []
    for key in _lists(cursor):
        keys.append(key)
        for _ in _elements(cursor, path):
            pass
    if len(keys) == 1:
        again = JsonCursor(more=_texts(path), max_length=MAX_LINE_BYTES)
        for _ in _lists(again):
            yield from _elements(again, path)
        return
    lists = ", ".join(keys) or "none"
    problem = f"expected a list of records, or an object with one list in it; found {lists}"
    yield (Fault(str(path), problem, "write each list of records to a separate file"),)


def _lists(cursor: JsonCursor) -> Iterator[str]:
    """Yield the keys of the lists in an object; the caller reads the elements in between."""
    cursor.expect("{")
    while not cursor.accept("}"):
        key = str(cursor.value())
        cursor.expect(":")
        if cursor.accept("["):
            yield key
        else:
            cursor.value()
        if not cursor.accept(","):
            cursor.expect("}")
            return


# --- tables ---


class _Table:
    """Lines of a CSV file, with a limit on the bytes of one row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.start(1)

    def start(self, line: int) -> None:
        """Start a row on this line."""
        self._line, self._room = line, MAX_LINE_BYTES

    def __iter__(self) -> Iterator[str]:
        for number, start, line in _lines(self._path):
            self._room -= len(line)
            if self._room < 0:
                problem = f"expected at most {MAX_LINE_BYTES} bytes in a row"
                hint = "look for a double quote that is not closed"
                raise _UnreadableError(Fault(f"{self._path}:{self._line}", problem, hint))
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                fault = _wrong_encoding(self._path, error, number, start)
                raise _UnreadableError(fault) from None
            text = text.removeprefix(BYTE_ORDER_MARK) if start == 0 else text
            # A carriage return also ends a line.
            yield from io.StringIO(text, newline="") if "\r" in text else (text,)


def _csv(path: Path) -> Records:
    csv.field_size_limit(MAX_LINE_BYTES)  # Python's default limit is shorter than a long answer
    table = _Table(path)
    rows = csv.reader(table, strict=True)
    header: list[str] | None = None
    line = 1  # first line of the row: a quoted field may span several lines
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield (Fault(f"{path}:{line}", f"not valid CSV: {error}"),)
            return
        if row is None:
            return
        where, line = f"{path}:{line}", rows.line_num + 1
        table.start(line)
        if not row:
            continue
        if header is None:
            header = row
            if len(set(header)) < len(header) or "" in header:
                names = ", ".join(map(quoted, header))
                problem = f"expected a header with different column names; found {names}"
                yield (Fault(where, problem, "write the column names in the first line"),)
                return
        elif len(row) != len(header):
            problem = f"expected {len(header)} fields, as in the header; found {len(row)}"
            yield (Fault(where, problem, "put double quotes around fields that contain a comma"),)
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
                problem = f"expected unique column names; found several named {', '.join(twice)}"
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
