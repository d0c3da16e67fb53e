"""`data check --fix`: a copy of the data without what makes training refuse them.

Mended is only what can be mended in one way: what a file holds beside its text (a byte order mark,
line ends of Windows), characters that no text has, numbers that JSON does not have, and roles that
go by another name. Every other record with a fault is left out and counted, as are records that say
nothing and records that repeat an earlier one.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qwen_local.datasets.formats import Example
from qwen_local.datasets.record_files import LONGEST_LINE, MARK, Faults, Record, checked
from qwen_local.datasets.row_builder import content_digest
from qwen_local.errors import DatasetError
from qwen_local.files import sync_folder
from qwen_local.inspection.check import many
from qwen_local.inspection.kinds import kind_of
from qwen_local.inspection.tally import Tally

Read = Callable[[Record], Example | Faults]
"""A record in its format, or what is wrong with it: its format, its tokens."""

BYTE_ORDER_MARK = "byte order mark removed"
LINE_ENDS = "lines that ended as Windows ends them"
NUL = "NUL characters removed"
HALF = "halves of surrogate pairs removed"
NOT_A_NUMBER = "NaN and Infinity made null"
ROLE = "roles renamed"
EMPTY = "an answer is empty or white space"
REPEATED = "repeats an earlier record word for word"

SHOWN = 3
"""Places of each kind that are named."""

OTHER_NAME = re.compile(r'change "(?P<old>.*)" to "(?P<new>.*)"')
FIELD = re.compile(r".*: (?P<list>\w+)\[(?P<index>\d+)\]\.(?P<key>\w+)")
SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """What a repair has done."""

    output: Path
    records: int
    """Written."""
    mended: Tally[str]
    """Records by what was mended in them, with their places in the source."""
    left_out: Tally[str]
    """Records by why they are not in the copy."""

    def to_json(self) -> dict[str, Any]:
        """The repair in JSON's types."""
        return {
            "output": str(self.output),
            "rows": self.records,
            "mended": dict(self.mended.counts),
            "left_out": dict(self.left_out.counts),
        }

    def describe(self) -> str:
        """The repair for a person."""
        said = [f"{self.output}: {many(self.records, 'record')} written"]
        for title, tally in (("mended", self.mended), ("left out", self.left_out)):
            for kind, count, first in tally.by_count():
                places = ", ".join(first[:SHOWN])
                more = ", ..." if count > SHOWN else ""
                said.append(f"{count:>7,}  {title}: {kind}: {places}{more}")
        return "\n".join(said)


def check_free(output: Path) -> None:
    """Refuse to write over anything.

    Raises:
        DatasetError: something is there, or there is no folder for it.
    """
    if output.exists() or output.is_symlink():
        raise DatasetError.at("--fix", f"expected a file that is not there yet; found {output}")
    if output.suffix != ".jsonl":
        raise DatasetError.at("--fix", f"expected a .jsonl file; found {output}")
    if not output.parent.is_dir():
        raise DatasetError.at("--fix", f"there is no folder {output.parent}")


def fix(records: Iterable[Record | Faults], path: Path | None, output: Path, read: Read) -> Fixed:
    """Write a repaired copy of a source, one JSON object a line under the keys that it has.

    Args:
        records: of the source.
        path: its file, where it is one.
        output: see `check_free`. A copy that is not complete is never there under this name.
        read: judges a record.

    Raises:
        DatasetError: no record is left.
    """
    check_free(output)
    mending = _Mending(path if path is not None and path.suffix == ".jsonl" else None, read)
    new = output.with_name(f".new-{os.getpid()}-{output.name}")
    try:
        with new.open("xb") as file:
            written = 0
            for value in mending.good(records):
                file.write(json.dumps(value, ensure_ascii=False, default=str).encode() + b"\n")
                written += 1
        if written == 0:
            raise DatasetError.at("--fix", "no record is left that could be written")
        sync_folder(new)  # of a file, its content
        new.replace(output)
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
    sync_folder(output.parent)
    return Fixed(output=output, records=written, mended=mending.mended, left_out=mending.left_out)


class _Mending:
    """What was mended and left out so far."""

    def __init__(self, lines: Path | None, read: Read) -> None:
        self.mended: Tally[str] = Tally()
        self.left_out: Tally[str] = Tally()
        self._lines = lines
        self._read = read
        self._seen: set[int] = set()

    def good(self, records: Iterable[Record | Faults]) -> Iterator[Any]:
        """The values of all records that are left, mended."""
        if self._lines is None:
            yield from self._good(records, None)
            return
        self._file_marks(self._lines)
        with self._lines.open("rb") as file:
            yield from self._good(records, _Lines(file))

    def _good(self, records: Iterable[Record | Faults], lines: _Lines | None) -> Iterator[Any]:
        for item in records:
            kinds: set[str] = set()
            record = self._cleaned(item, lines, kinds)
            if record is not None and (value := self._judged(record, kinds)) is not None:
                for kind in sorted(kinds):
                    self.mended.add(kind, record.where)
                yield value

    def _file_marks(self, path: Path) -> None:
        with path.open("rb") as file:
            if file.read(3) == MARK.encode():
                self.mended.add(BYTE_ORDER_MARK, str(path))
            file.seek(0)
            lines = _Lines(file)
            while line := lines.next():
                if line.endswith(b"\r\n"):
                    self.mended.add(LINE_ENDS, f"{path}:{lines.number}")

    def _cleaned(
        self, item: Record | Faults, lines: _Lines | None, kinds: set[str]
    ) -> Record | None:
        """A record without characters and numbers that cannot be, or None: it is left out."""
        value: Any
        if isinstance(item, Record):
            where, value = item.where, item.value
        else:
            where = item[0].where.partition(": ")[0]
            number = where.rpartition(":")[2]
            value = lines.value(int(number)) if lines and number.isdigit() else None
        cleaned = checked(where, _clean(value, kinds)) if value is not None else item
        if isinstance(cleaned, Record):
            return cleaned
        faults = cleaned if isinstance(item, Record) else item
        assert not isinstance(faults, Record)
        self.left_out.add(kind_of(faults[0].problem), where)
        return None

    def _judged(self, record: Record, kinds: set[str]) -> Any | None:
        """The value of a record to be written, or None: it is left out."""
        read = self._read(record)
        if isinstance(read, tuple) and (renamed := _renamed(record, read)) is not None:
            again = self._read(renamed)
            if not isinstance(again, tuple):
                kinds.add(ROLE)
                record, read = renamed, again
        if isinstance(read, tuple):
            self.left_out.add(kind_of(read[0].problem), record.where)
            return None
        if read.says_nothing:
            self.left_out.add(EMPTY, record.where)
            return None
        digest = content_digest(read)
        if digest in self._seen:
            self.left_out.add(REPEATED, record.where)
            return None
        self._seen.add(digest)
        return record.value


class _Lines:
    """The lines of a file by number, ascending, none longer than a reader takes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.number = 0

    def next(self) -> bytes:
        """The next line, or its beginning where it is too long; nothing at the end."""
        line = piece = self._file.readline(LONGEST_LINE + 1)
        self.number += 1
        while len(piece) > LONGEST_LINE and not piece.endswith(b"\n"):
            piece = self._file.readline(LONGEST_LINE + 1)
        return line

    def value(self, number: int) -> Any | None:
        """The JSON value on a line as Python's reader takes it, or None where it is none."""
        line = b""
        while self.number < number:
            line = self.next()
        try:
            return json.loads(line.decode().removeprefix(MARK), object_pairs_hook=_object)
        except (ValueError, RecursionError):
            return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key occurs twice: which is meant?")
    return value


def _clean(value: Any, kinds: set[str]) -> Any:
    """A JSON value without what no text and no number can be; notes what it has removed."""
    match value:
        case str():
            if "\0" in value:
                kinds.add(NUL)
                value = value.replace("\0", "")
            if SURROGATE.search(value):
                kinds.add(HALF)
                value = SURROGATE.sub("", value)
            return value
        case float() if not math.isfinite(value):
            kinds.add(NOT_A_NUMBER)
            return None
        case list():
            return [_clean(item, kinds) for item in value]
        case dict():
            return {_clean(key, kinds): _clean(item, kinds) for key, item in value.items()}
        case _:
            return value


def _renamed(record: Record, faults: Faults) -> Record | None:
    """The record with roles under the names that the hints give; None where there are none."""
    value: Any = deepcopy(dict(record.value))
    changed = False
    for fault in faults:
        role = OTHER_NAME.fullmatch(fault.hint or "")
        field = FIELD.fullmatch(fault.where)
        if role and field:
            message = value[field["list"]][int(field["index"])]
            changed |= message[field["key"]] == role["old"]
            message[field["key"]] = role["new"]
    return Record(record.where, value) if changed else None
