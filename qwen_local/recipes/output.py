"""What a recipe leaves: a folder that `train` reads, and a summary of what went into it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qwen_local.errors import JobError
from qwen_local.files import new_name, sync_folder

TRAIN, VALID = "train.jsonl", "valid.jsonl"
MOST_LABELS = 20
"""Labels that the summary counts one by one; `--json` counts them all."""

Row = Mapping[str, Any]
"""One line of a file, in the `prompt` or the `messages` format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a recipe made of its sources."""

    output: Path
    rows: Mapping[str, int]
    """Of each file that was written."""
    labels: Mapping[str, Mapping[str, int]]
    """The same rows by their label, or by the kind of their answer."""
    left_out: Mapping[str, int]
    """What was not used, by reason."""
    notes: Sequence[str] = field(default=())
    """Wishes that the sources could not meet."""

    def to_json(self) -> dict[str, Any]:
        """One object for other programs."""
        return {**asdict(self), "output": str(self.output), "notes": list(self.notes)}

    def __str__(self) -> str:
        lines = [
            f"{self.output / name}: {rows:,} rows ({_by_label(self.labels[name])})"
            for name, rows in self.rows.items()
            if rows
        ]
        reasons = [f"{reason.replace('_', ' ')} {n:,}" for reason, n in self.left_out.items() if n]
        return "\n".join([*lines, f"left out: {', '.join(reasons) or 'nothing'}"])


def _by_label(rows: Mapping[str, int]) -> str:
    if len(rows) > MOST_LABELS:
        return f"{len(rows):,} labels of {min(rows.values()):,} to {max(rows.values()):,}"
    return ", ".join(f"{label} {n:,}" for label, n in rows.items())


def balance(labels: Iterable[str]) -> dict[str, int]:
    """Rows of each label, the most frequent one first.

    >>> balance(["No", "Yes", "Yes"])
    {'Yes': 2, 'No': 1}
    """
    counts = Counter(labels)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def check_output(folder: Path, *, overwrite: bool, sources: Iterable[Path]) -> None:
    """Say before any work whether the folder can be written.

    Args:
        folder: is to hold the rows.
        overwrite: whether `train.jsonl` and `valid.jsonl` in it may be replaced.
        sources: files that are read, and never written; what is no file is no matter.

    Raises:
        JobError: the folder is a file, holds something, or holds a source.
    """
    another = "choose another folder with --output"
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not there.is_dir():
            raise JobError.at("--output", f"{there} is not a folder", another)
        if not os.access(there, os.W_OK):
            raise JobError.at("--output", f"{there} cannot be written to", another)
        if folder.exists() and any(folder.iterdir()) and not overwrite:
            ways = f"{another}, or replace its {TRAIN} and {VALID} with --overwrite"
            raise JobError.at("--output", f"{folder} is not empty", ways)
        for source in sources:
            for old in (folder / TRAIN, folder / VALID):
                if old.exists() and source.exists() and old.samefile(source):
                    raise JobError.at("--output", f"{old} is what the rows come from", another)
    except OSError as error:
        raise JobError.at("--output", f"{folder}: {error.strerror}", another) from None


def write_rows(folder: Path, train: Iterable[Row], valid: Iterable[Row]) -> None:
    """Both files, or neither; without rows for evaluation there is no `valid.jsonl`.

    Rows of two builds never lie side by side, whenever the power fails: the old `valid.jsonl` goes
    before the new `train.jsonl` comes.

    Raises:
        OSError: they cannot be written; what was in the folder still is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _new_file(folder / TRAIN, train), _new_file(folder / VALID, valid) as has_valid:
        (folder / VALID).unlink(missing_ok=True)
        sync_folder(folder)
        _beside(folder / TRAIN).replace(folder / TRAIN)
        if has_valid:
            _beside(folder / VALID).replace(folder / VALID)
        sync_folder(folder)


def _beside(path: Path) -> Path:
    return path.with_name(new_name(path.name))


@contextmanager
def _new_file(path: Path, rows: Iterable[Row]) -> Iterator[bool]:
    """A file with these rows beside `path`, on the disk and not renamed yet.

    Yields:
        Whether there are any rows in it.
    """
    new = _beside(path)
    try:
        with new.open("wb") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            written = file.tell() > 0
        sync_folder(new)
        yield written
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
