"""Read MovieLens as GroupLens publishes it: `ratings.csv` and `movies.csv`.

Shapes: N = ratings, 13 bytes each.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from qwen_local.datasets.faults import FAULTS_KEPT, quoted
from qwen_local.datasets.record_files import Record, read
from qwen_local.errors import DatasetError, Fault
from qwen_local.recipes.csv_columns import column_faults

RATINGS, MOVIES = "ratings.csv", "movies.csv"
COLUMN_DTYPES = {"userId": "int32", "movieId": "int32", "rating": "float32", "timestamp": "int64"}
"""Type that Arrow reads for each column."""
TITLE_COLUMNS = ("movieId", "title")
STORED_DTYPES = {"user_N": "int32", "film_N": "int32", "halves_N": "uint8", "time_N": "uint32"}
"""Type that `Ratings` stores for each column."""
MIN_LINE_BYTES = len("1,1,1,1\n")

MAX_HEADER_BYTES = 1 << 16
"""Maximum size of the header line in bytes."""
MAX_ID = 2**31 - 1
MAX_TIMESTAMP = 2**32 - 1
"""Seconds since 1970; the year 2106."""
MAX_HALF_STARS = 10
DIGITS = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class _FieldRule:
    expected: str
    is_valid: Callable[[str], bool]


def _is_stars(text: str) -> bool:
    with suppress(ValueError):
        return 2 * float(text) in range(1, MAX_HALF_STARS + 1)
    return False


def _whole(last: int) -> _FieldRule:
    return _FieldRule(
        f"a whole number from 0 to {last}",
        lambda text: DIGITS.fullmatch(text) is not None and int(text) <= last,
    )


FIELDS = {
    "userId": _whole(MAX_ID),
    "movieId": _whole(MAX_ID),
    "rating": _FieldRule("stars from 0.5 to 5 in steps of a half", _is_stars),
    "timestamp": _whole(MAX_TIMESTAMP),
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ratings:
    """Columns of ratings."""

    user_N: np.ndarray
    """int32 [N]: userId."""
    film_N: np.ndarray
    """int32 [N]: movieId."""
    halves_N: np.ndarray
    """uint8 [N]: half stars, 1 to 10."""
    time_N: np.ndarray
    """uint32 [N]: seconds since 1970."""

    def __len__(self) -> int:
        return len(self.user_N)

    def take(self, which: np.ndarray) -> Ratings:
        """Return the ratings at these indices, or where this mask is True."""
        return Ratings(
            user_N=self.user_N[which],
            film_N=self.film_N[which],
            halves_N=self.halves_N[which],
            time_N=self.time_N[which],
        )


def find_files(folder: Path) -> tuple[Path, Path]:
    """Return the paths of the two files in an unpacked data set.

    Raises:
        DatasetError: the folder or one of the files is missing.
    """
    if folder.is_file():
        hint = "pass the folder that contains it"
        if folder.suffix == ".zip":
            hint = "unpack it and pass the folder"
        raise DatasetError.at(str(folder), "expected a folder; found a file", hint)
    if not folder.is_dir():
        hint = f"pass the folder that contains {RATINGS} and {MOVIES}"
        raise DatasetError.at(str(folder), "no such folder", hint)
    missing = [name for name in (RATINGS, MOVIES) if not (folder / name).is_file()]
    if missing:
        hint = "unpack ml-25m.zip, ml-32m.zip or ml-latest-small.zip and pass the folder"
        if (folder / "ratings.dat").is_file():
            hint = "the 1M and 10M sets have another layout; use 25M, 32M or latest-small"
        raise DatasetError.at(str(folder), f"the folder has no {' and no '.join(missing)}", hint)
    return folder / RATINGS, folder / MOVIES


def read_titles(path: Path) -> tuple[dict[int, str], list[Fault]]:
    """Return the title of each movieId, and the faults of the file.

    Films with an empty title are left out.
    """
    titles: dict[int, str] = {}
    faults: list[Fault] = []
    for number, record in enumerate(read(path)):
        if isinstance(record, tuple):
            faults += record
        elif number == 0 and (
            missing := column_faults(f"{path}:1", [*record.value], TITLE_COLUMNS)
        ):
            return {}, missing
        else:
            faults += _add_title(titles, record)
        if len(faults) >= FAULTS_KEPT:
            break
    return titles, faults


def _add_title(titles: dict[int, str], record: Record) -> Iterator[Fault]:
    film, title = record.value["movieId"].strip(), record.value["title"].strip()
    where = f"{record.where}: movieId"
    if not FIELDS["movieId"].is_valid(film):
        yield Fault(where, f"expected {FIELDS['movieId'].expected}; found {quoted(film)}")
    elif titles.get(int(film), title) != title:
        problem = f"film {film} has two different titles"
        yield Fault(where, problem, "remove one of them")
    elif title:
        titles[int(film)] = title


def read_ratings(path: Path) -> tuple[Ratings, list[Fault]]:
    """Return all ratings in file order, or no ratings and the faults of the file."""
    import pyarrow as pa  # type: ignore[import-untyped]

    none = Ratings(**{name: np.zeros(0, kind) for name, kind in STORED_DTYPES.items()})
    try:
        columns = _header(path)
        if missing := column_faults(f"{path}:1", columns, COLUMN_DTYPES):
            return none, missing
        return _read(path), []
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        return none, [Fault(f"{path}:1", f"expected UTF-8; found {byte}", "save the file as UTF-8")]
    except (pa.ArrowException, ValueError) as error:
        # Arrow is fast but does not report lines, so read again line by line to find the faults.
        faults = list(islice(_faults(path), FAULTS_KEPT))
        reason = str(error).splitlines()[0]
        return none, faults or [Fault(str(path), f"cannot be read as CSV: {reason}")]
    except OSError as error:
        return none, [Fault(str(path), f"cannot be read: {error.strerror or error}")]


def _header(path: Path) -> list[str]:
    with path.open("rb") as file:
        line = file.readline(MAX_HEADER_BYTES).decode("utf-8-sig")
    return next(csv.reader([line.rstrip("\r\n")]), [])


def _read(path: Path) -> Ratings:
    """Read the ratings, about a megabyte of text at a time.

    The columns are allocated for the largest possible number of rows. The system provides memory
    only for pages that are written, so this needs less than concatenating batches.

    Raises:
        pyarrow.ArrowException: a line has the wrong number of fields, or a field is not a number.
        ValueError: a number is out of range.
    """
    import pyarrow.csv as arrow_csv  # type: ignore[import-untyped]

    max_rows = path.stat().st_size // MIN_LINE_BYTES + 1
    columns = {name: np.empty(max_rows, dtype) for name, dtype in STORED_DTYPES.items()}
    rows = 0
    options = arrow_csv.ConvertOptions(
        column_types=COLUMN_DTYPES, include_columns=list(COLUMN_DTYPES)
    )
    with arrow_csv.open_csv(path, convert_options=options) as batches:
        for batch in batches:
            # Without copying: `to_numpy` raises if a field is empty (null).
            user, film, stars, time = (column.to_numpy() for column in batch.columns)
            halves = 2 * stars
            valid = (halves >= 1) & (halves <= MAX_HALF_STARS) & (halves == np.floor(halves))
            valid &= (user >= 0) & (film >= 0) & (time >= 0) & (time <= MAX_TIMESTAMP)
            if not valid.all():
                raise ValueError("a number is out of range")
            end = rows + len(user)
            for column, values in zip(columns.values(), (user, film, halves, time), strict=True):
                column[rows:end] = values
            rows = end
    return Ratings(**{name: column[:rows] for name, column in columns.items()})


def _faults(path: Path) -> Iterator[Fault]:
    """Yield a fault for each line that is not a rating."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, strict=True)
        header: list[str] | None = None
        while True:
            line = rows.line_num + 1
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield Fault(f"{path}:{line}", f"not valid CSV: {error}")
                return
            if row is None:
                return
            if header is None:
                header = row
            elif row and len(row) != len(header):
                problem = f"expected {len(header)} fields, as in the header; found {len(row)}"
                yield Fault(f"{path}:{line}", problem)
            elif row:
                for name, field in zip(header, row, strict=True):
                    if name in FIELDS and not FIELDS[name].is_valid(field.strip()):
                        problem = f"expected {FIELDS[name].expected}; found {quoted(field)}"
                        yield Fault(f"{path}:{line}: {name}", problem)
