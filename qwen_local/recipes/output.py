"""Output of a recipe: the folder that `train` reads, and a summary."""

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
MAX_LABELS_SHOWN = 20
"""Maximum number of labels that the summary lists one by one; `--json` lists all."""

Row = Mapping[str, Any]
"""One line of a file, in the `prompt` or the `messages` format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeSummary:
    """Result of a recipe: rows written, rows left out."""

    output: Path
    rows: Mapping[str, int]
    """Number of rows of each file."""
    labels: Mapping[str, Mapping[str, int]]
    """Number of rows of each file, by label or by kind of answer."""
    left_out: Mapping[str, int]
    """Number of rows that were not used, by reason."""
    notes: Sequence[str] = field(default=())
    """Requests that the sources could not satisfy."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `--json`."""
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
    if len(rows) > MAX_LABELS_SHOWN:
        return f"{len(rows):,} labels, {min(rows.values()):,} to {max(rows.values()):,} rows each"
    return ", ".join(f"{label} {n:,}" for label, n in rows.items())


def balance(labels: Iterable[str]) -> dict[str, int]:
    """Count the rows of each label, the most frequent first.

    >>> balance(["No", "Yes", "Yes"])
    {'Yes': 2, 'No': 1}
    """
    counts = Counter(labels)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def check_output(folder: Path, *, overwrite: bool, sources: Iterable[Path]) -> None:
    """Check before any work that the folder can be written.

    Args:
        folder: the output folder.
        overwrite: True if `train.jsonl` and `valid.jsonl` in it may be replaced.
        sources: input files, which are never overwritten; names that are not files are ignored.

    Raises:
        JobError: the folder is a file, is not empty, or contains a source.
    """
    another = "choose another folder with `output`"
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not there.is_dir():
            raise JobError.at("output", f"{there} is not a folder", another)
        if not os.access(there, os.W_OK):
            raise JobError.at("output", f"{there} is not writable", another)
        if folder.exists() and any(folder.iterdir()) and not overwrite:
            hint = f"{another}, or replace its {TRAIN} and {VALID} with `overwrite`"
            raise JobError.at("output", f"{folder} is not empty", hint)
        for source in sources:
            for old in (folder / TRAIN, folder / VALID):
                if old.exists() and source.exists() and old.samefile(source):
                    raise JobError.at("output", f"{old} is an input file", another)
    except OSError as error:
        raise JobError.at("output", f"{folder}: {error.strerror}", another) from None


def write_rows(folder: Path, train: Iterable[Row], valid: Iterable[Row]) -> None:
    """Write both files or neither; without evaluation rows there is no `valid.jsonl`.

    The folder never mixes files of two builds, even after a power failure: the old `valid.jsonl` is
    removed before the new `train.jsonl` appears.

    Raises:
        OSError: a file cannot be written; the old files are still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _new_file(folder / TRAIN, train), _new_file(folder / VALID, valid) as has_valid:
        (folder / VALID).unlink(missing_ok=True)
        sync_folder(folder)
        _temporary(folder / TRAIN).replace(folder / TRAIN)
        if has_valid:
            _temporary(folder / VALID).replace(folder / VALID)
        sync_folder(folder)


def _temporary(path: Path) -> Path:
    return path.with_name(new_name(path.name))


@contextmanager
def _new_file(path: Path, rows: Iterable[Row]) -> Iterator[bool]:
    """Write the rows to a temporary file beside `path` and sync it; the caller renames it.

    Yields:
        True if the file has rows.
    """
    new = _temporary(path)
    try:
        with new.open("wb") as file:
            written = False
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                written = True
        sync_folder(new)
        yield written
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
