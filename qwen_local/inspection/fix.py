"""`data check --fix`: write a copy of the data that training accepts.

Only faults with exactly one fix are repaired: a byte order mark, Windows line endings, characters
that are not valid text, numbers that are not valid JSON, and roles with another name. All other
faulty records are left out and counted, and so are empty answers and exact duplicates.
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
from qwen_local.datasets.record_files import (
    BYTE_ORDER_MARK,
    MAX_LINE_BYTES,
    Faults,
    Record,
    checked,
)
from qwen_local.datasets.row_builder import content_digest
from qwen_local.errors import DatasetError
from qwen_local.files import sync_folder
from qwen_local.inspection.check import plural
from qwen_local.inspection.kinds import kind_of
from qwen_local.inspection.tally import Tally

ReadRecord = Callable[[Record], Example | Faults]
"""Converts a record to an example, or returns its faults (of format or tokens)."""

BOM_REMOVED = "byte order mark removed"
WINDOWS_LINE_ENDS = "Windows line endings removed"
NUL_REMOVED = "NUL characters removed"
LONE_SURROGATES = "halves of surrogate pairs removed"
NOT_A_NUMBER = "NaN and Infinity replaced by null"
ROLES_RENAMED = "roles renamed"
EMPTY_ANSWER = "an answer is empty or whitespace"
DUPLICATE = "repeats an earlier record exactly"

MAX_PLACES_SHOWN = 3
"""Maximum number of places that are listed per kind."""

RENAME_HINT = re.compile(r'change "(?P<old>.*)" to "(?P<new>.*)"')
ROLE_PLACE = re.compile(r".*: (?P<list>\w+)\[(?P<index>\d+)\]\.(?P<key>\w+)")
SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class FixResult:
    """Result of a repair."""

    output: Path
    records: int
    """Number of records written."""
    repaired: Tally[str]
    """Places (in the source) of repaired records, by kind of repair."""
    left_out: Tally[str]
    """Places of records that are not in the copy, by reason."""

    def to_json(self) -> dict[str, Any]:
        """Return the repair as a JSON object."""
        return {
            "output": str(self.output),
            "rows": self.records,
            "repaired": dict(self.repaired.counts),
            "left_out": dict(self.left_out.counts),
        }

    def describe(self) -> str:
        """Describe the repair as text."""
        lines = [f"{self.output}: {plural(self.records, 'record')} written"]
        for title, tally in (("repaired", self.repaired), ("left out", self.left_out)):
            for kind, count, first in tally.by_count():
                places = ", ".join(first[:MAX_PLACES_SHOWN])
                more = ", ..." if count > MAX_PLACES_SHOWN else ""
                lines.append(f"{count:>7,}  {title}: {kind}: {places}{more}")
        return "\n".join(lines)


def check_free(output: Path) -> None:
    """Check that the output is a new file.

    Raises:
        DatasetError: the file exists, is not a .jsonl file, or its folder does not exist.
    """
    if output.exists() or output.is_symlink():
        raise DatasetError.at("output", f"expected the name of a new file; {output} exists")
    if output.suffix != ".jsonl":
        raise DatasetError.at("output", f"expected a .jsonl file; found {output}")
    if not output.parent.is_dir():
        raise DatasetError.at("output", f"no such folder: {output.parent}")


def fix(
    records: Iterable[Record | Faults], path: Path | None, output: Path, read: ReadRecord
) -> FixResult:
    """Write a repaired copy of a source: one JSON object per line, with the keys of the source.

    Args:
        records: records of the source.
        path: file of the source; None if it is not a file.
        output: see `check_free`. An incomplete copy never has this name.
        read: converts a record or returns its faults.

    Raises:
        DatasetError: no record is left.
    """
    check_free(output)
    repair = _Repair(path if path is not None and path.suffix == ".jsonl" else None, read)
    new = output.with_name(f".new-{os.getpid()}-{output.name}")
    try:
        with new.open("xb") as file:
            written = 0
            for value in repair.good(records):
                file.write(json.dumps(value, ensure_ascii=False, default=str).encode() + b"\n")
                written += 1
        if written == 0:
            raise DatasetError.at("output", "no usable record is left; nothing is written")
        sync_folder(new)  # syncs the content of the file
        new.replace(output)
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
    sync_folder(output.parent)
    return FixResult(
        output=output, records=written, repaired=repair.repaired, left_out=repair.left_out
    )


class _Repair:
    """A repair in progress: counts what was repaired and left out."""

    def __init__(self, lines: Path | None, read: ReadRecord) -> None:
        self.repaired: Tally[str] = Tally()
        self.left_out: Tally[str] = Tally()
        self._lines = lines
        self._read = read
        self._seen: set[int] = set()

    def good(self, records: Iterable[Record | Faults]) -> Iterator[Any]:
        """Yield the repaired values of all usable records."""
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
                    self.repaired.add(kind, record.where)
                yield value

    def _file_marks(self, path: Path) -> None:
        with path.open("rb") as file:
            if file.read(3) == BYTE_ORDER_MARK.encode():
                self.repaired.add(BOM_REMOVED, str(path))
            file.seek(0)
            lines = _Lines(file)
            while line := lines.next():
                if line.endswith(b"\r\n"):
                    self.repaired.add(WINDOWS_LINE_ENDS, f"{path}:{lines.number}")

    def _cleaned(
        self, item: Record | Faults, lines: _Lines | None, kinds: set[str]
    ) -> Record | None:
        """Remove invalid characters and numbers; None if the record is left out."""
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
        """Return the value to write; None if the record is left out."""
        read = self._read(record)
        if isinstance(read, tuple) and (renamed := _renamed(record, read)) is not None:
            again = self._read(renamed)
            if not isinstance(again, tuple):
                kinds.add(ROLES_RENAMED)
                record, read = renamed, again
        if isinstance(read, tuple):
            self.left_out.add(kind_of(read[0].problem), record.where)
            return None
        if read.empty:
            self.left_out.add(EMPTY_ANSWER, record.where)
            return None
        digest = content_digest(read)
        if digest in self._seen:
            self.left_out.add(DUPLICATE, record.where)
            return None
        self._seen.add(digest)
        return record.value


class _Lines:
    """Lines of a file by ascending number; overlong lines are truncated."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.number = 0

    def next(self) -> bytes:
        """Return the next line (truncated if too long); empty at the end of the file."""
        line = piece = self._file.readline(MAX_LINE_BYTES + 1)
        self.number += 1
        while len(piece) > MAX_LINE_BYTES and not piece.endswith(b"\n"):
            piece = self._file.readline(MAX_LINE_BYTES + 1)
        return line

    def value(self, number: int) -> Any | None:
        """Parse a line with Python's lenient JSON reader; None if it fails."""
        line = b""
        while self.number < number:
            line = self.next()
        try:
            return json.loads(
                line.decode().removeprefix(BYTE_ORDER_MARK), object_pairs_hook=_object
            )
        except (ValueError, RecursionError):
            return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("duplicate key")
    return value


def _clean(value: Any, kinds: set[str]) -> Any:
    """Remove invalid characters and numbers from a JSON value; add the repairs to `kinds`."""
    match value:
        case str():
            if "\0" in value:
                kinds.add(NUL_REMOVED)
                value = value.replace("\0", "")
            if SURROGATE.search(value):
                kinds.add(LONE_SURROGATES)
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
    """Rename roles as the hints of the faults propose; None if no hint proposes a name."""
    value: Any = deepcopy(dict(record.value))
    changed = False
    for fault in faults:
        role = RENAME_HINT.fullmatch(fault.hint or "")
        field = ROLE_PLACE.fullmatch(fault.where)
        if role and field:
            message = value[field["list"]][int(field["index"])]
            changed |= message[field["key"]] == role["old"]
            message[field["key"]] = role["new"]
    return Record(record.where, value) if changed else None
