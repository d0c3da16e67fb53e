"""MovieLens as GroupLens publishes it: `ratings.csv` as columns, `movies.csv` as titles.

Shapes: N = ratings. Each takes 13 bytes here.
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
COLUMNS = {"userId": "int32", "movieId": "int32", "rating": "float32", "timestamp": "int64"}
"""As Arrow reads them."""
TITLES = ("movieId", "title")
KINDS = {"user_N": "int32", "film_N": "int32", "halves_N": "uint8", "time_N": "uint32"}
"""As they are held."""
SHORTEST_LINE = len("1,1,1,1\n")

LONGEST_HEADER = 1 << 16
"""Bytes."""
LAST_ID = 2**31 - 1
LATEST = 2**32 - 1
"""Seconds; in the year 2106."""
MOST_HALVES = 10
WHOLE = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class _Field:
    wanted: str
    right: Callable[[str], bool]


def _is_stars(text: str) -> bool:
    with suppress(ValueError):
        return 2 * float(text) in range(1, MOST_HALVES + 1)
    return False


def _whole(last: int) -> _Field:
    return _Field(
        f"a whole number from 0 to {last}",
        lambda text: WHOLE.fullmatch(text) is not None and int(text) <= last,
    )


FIELDS = {
    "userId": _whole(LAST_ID),
    "movieId": _whole(LAST_ID),
    "rating": _Field("stars from 0.5 to 5 in steps of a half", _is_stars),
    "timestamp": _whole(LATEST),
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ratings:
    """Who rated which film how, and when."""

    user_N: np.ndarray
    """int32 [N]."""
    film_N: np.ndarray
    """int32 [N]: its movieId."""
    halves_N: np.ndarray
    """uint8 [N]: half stars, 1 to 10."""
    time_N: np.ndarray
    """uint32 [N]: seconds since 1970."""

    def __len__(self) -> int:
        return len(self.user_N)

    def take(self, which: np.ndarray) -> Ratings:
        """The ratings at these indices, or where this mask holds."""
        return Ratings(
            user_N=self.user_N[which],
            film_N=self.film_N[which],
            halves_N=self.halves_N[which],
            time_N=self.time_N[which],
        )


def find(folder: Path) -> tuple[Path, Path]:
    """The two files in an unpacked data set.

    Raises:
        DatasetError: one of them, or the folder, is not there.
    """
    if folder.is_file():
        hint = "unpack it, and name the folder" if folder.suffix == ".zip" else "name its folder"
        raise DatasetError.at(str(folder), "expected a folder; found a file", hint)
    if not folder.is_dir():
        raise DatasetError.at(str(folder), "no such folder", f"it holds {RATINGS} and {MOVIES}")
    missing = [name for name in (RATINGS, MOVIES) if not (folder / name).is_file()]
    if missing:
        hint = "unpack ml-25m.zip, ml-32m.zip or ml-latest-small.zip, and name the folder"
        if (folder / "ratings.dat").is_file():
            hint = "the 1M and 10M sets are laid out otherwise; take 25M, 32M or latest-small"
        raise DatasetError.at(str(folder), f"expected {' and '.join(missing)} in it", hint)
    return folder / RATINGS, folder / MOVIES


def read_titles(path: Path) -> tuple[dict[int, str], list[Fault]]:
    """Title of each movieId, as published, and what is wrong with the file.

    A film whose title is empty has none.
    """
    titles: dict[int, str] = {}
    faults: list[Fault] = []
    for number, record in enumerate(read(path)):
        if isinstance(record, tuple):
            faults += record
        elif number == 0 and (missing := column_faults(f"{path}:1", [*record.value], TITLES)):
            return {}, missing
        else:
            faults += _note_title(titles, record)
        if len(faults) >= FAULTS_KEPT:
            break
    return titles, faults


def _note_title(titles: dict[int, str], record: Record) -> Iterator[Fault]:
    film, title = record.value["movieId"].strip(), record.value["title"].strip()
    where = f"{record.where}: movieId"
    if not FIELDS["movieId"].right(film):
        yield Fault(where, f"expected {FIELDS['movieId'].wanted}; found {quoted(film)}")
    elif titles.get(int(film), title) != title:
        problem = f"expected one title for each film; found a second one for {film}"
        yield Fault(where, problem, "keep one of them")
    elif title:
        titles[int(film)] = title


def read_ratings(path: Path) -> tuple[Ratings, list[Fault]]:
    """All ratings, in the order of the file, and what is wrong with it (then no ratings)."""
    import pyarrow as pa  # type: ignore[import-untyped]

    none = Ratings(**{name: np.zeros(0, kind) for name, kind in KINDS.items()})
    try:
        columns = _header(path)
        if missing := column_faults(f"{path}:1", columns, COLUMNS):
            return none, missing
        return _read(path), []
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        return none, [Fault(f"{path}:1", f"expected UTF-8; found {byte}", "save the file as UTF-8")]
    except (pa.ArrowException, ValueError) as error:
        # Arrow is fast and says little: where a line is wrong, they are read again one by one.
        faults = list(islice(_faults(path), FAULTS_KEPT))
        said = str(error).splitlines()[0]
        return none, faults or [Fault(str(path), f"cannot be read as CSV: {said}")]
    except OSError as error:
        return none, [Fault(str(path), f"cannot be read: {error.strerror or error}")]


def _header(path: Path) -> list[str]:
    with path.open("rb") as file:
        line = file.readline(LONGEST_HEADER).decode("utf-8-sig")
    return next(csv.reader([line.rstrip("\r\n")]), [])


def _read(path: Path) -> Ratings:
    """The ratings, read about a megabyte of text at a time.

    The columns are as long as the file could ever need: memory is taken only where they are
    written to, and is nowhere taken twice, as it would be to join pieces.

    Raises:
        pyarrow.ArrowException: a line has more or fewer fields, or one that is no number.
        ValueError: a number is out of its range.
    """
    import pyarrow.csv as arrow_csv  # type: ignore[import-untyped]

    most = path.stat().st_size // SHORTEST_LINE + 1
    columns = {name: np.empty(most, kind) for name, kind in KINDS.items()}
    rows = 0
    options = arrow_csv.ConvertOptions(column_types=COLUMNS, include_columns=list(COLUMNS))
    with arrow_csv.open_csv(path, convert_options=options) as batches:
        for batch in batches:
            # Where a field is empty, there is no such array, and Arrow says so.
            user, film, stars, time = (column.to_numpy() for column in batch.columns)
            halves = 2 * stars
            right = (halves >= 1) & (halves <= MOST_HALVES) & (halves == np.floor(halves))
            right &= (user >= 0) & (film >= 0) & (time >= 0) & (time <= LATEST)
            if not right.all():
                raise ValueError("a number is out of its range")
            end = rows + len(user)
            for column, values in zip(columns.values(), (user, film, halves, time), strict=True):
                column[rows:end] = values
            rows = end
    return Ratings(**{name: column[:rows] for name, column in columns.items()})


def _faults(path: Path) -> Iterator[Fault]:
    """What keeps each line from being a rating."""
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
                    if name in FIELDS and not FIELDS[name].right(field.strip()):
                        problem = f"expected {FIELDS[name].wanted}; found {quoted(field)}"
                        yield Fault(f"{path}:{line}: {name}", problem)
