"""Sources of records: files, folders with train and valid files, data sets on the Hub, entries of a
dataset_info.json."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from qwen_local.datasets import dataset_info
from qwen_local.datasets.column_map import KEYS, FormatName
from qwen_local.datasets.dataset_info import read_entry, read_list
from qwen_local.datasets.faults import some
from qwen_local.datasets.formats import Example, Turns, examples, missing_column
from qwen_local.datasets.record_files import (
    COMPRESSED,
    READERS,
    Faults,
    Record,
    Records,
    checked,
    kind_of_file,
    not_regular,
    read,
    unpacked,
)
from qwen_local.errors import DatasetError, Fault
from qwen_local.files import expanded, similar_name

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?::([\w.+-]+))?(?:\[([\w.+-]+)\])?")
"""`owner/name`, optionally with `:subset` and `[split]` after it."""

Split = tuple[str, ...]
"""Names that a split may have."""
TRAIN: Split = ("train",)
EVAL: Split = ("valid", "validation", "eval")
"""The first is mlx-lm's. Training does not use a test split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSpec:
    """Name and options of a source, as in the job."""

    name: str
    """A file, a folder, a hub id or an entry of a list: `data/dataset_info.json#poems`."""
    weight: float = 1.0
    """Number of times that its rows count in an epoch; always 1 for evaluation data."""
    format: FormatName = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    """The column for each key of the format that has another name in the data."""
    limit: int | None = None
    """Most records to read, from the first on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A source that exists."""

    name: str
    """The path, or the hub id with the split: `owner/name[train]`."""
    records: Callable[[], Records]
    """Reads all records, from the start on each call."""
    sha256: str | None
    """Digest of the file as stored, compressed or not; None for a source on the Hub."""
    commit: str | None
    """Commit of the data set on the Hub; None for a file."""
    weight: float = 1.0
    format: FormatName = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    turns: Turns | None = None
    """Keys and roles of its conversations, if a dataset_info.json names them."""
    limit: int | None = None
    state: tuple[int, int] | None = None
    """Size and modification time of the file when it was hashed."""

    def check_unchanged(self) -> None:
        """Refuse a file that changed after it was hashed.

        Raises:
            DatasetError: it has changed, or no longer exists.
        """
        with contextlib.suppress(OSError):
            if self.state is None or _state(Path(self.name)) == self.state:
                return
        problem = "it was changed while it was read"
        raise DatasetError.at(self.name, problem, "run the command again when it is complete")

    def read(self) -> Iterator[Record | Faults]:
        """Yield the records, at most `limit` of them, and the faults among them.

        A column for an optional key that no record has is a fault after the last record.
        """
        keys = {column: key for key, column in self.columns.items()}
        required = KEYS[self.format].required if self.format != "auto" else ()
        unseen = {column for column, key in keys.items() if key not in required}
        first: Record | None = None
        for item in islice(self.records(), self.limit):
            if isinstance(item, Record):
                first = first or item
                if unseen:
                    unseen -= item.value.keys()
            yield item
        for column in sorted(unseen) if first else ():
            assert first is not None
            yield (missing_column(first.where, first.value, keys[column], column),)

    def examples(self) -> Iterator[Example | Faults]:
        """Yield each record as an example, or its faults."""
        return examples(self.read(), self.format, columns=self.columns, turns=self.turns)


def locate(
    train: Sequence[SourceSpec], eval: Sequence[SourceSpec] = ()
) -> tuple[list[Source], list[Source]]:
    """Find the sources of the training rows and of the evaluation rows.

    A folder or a data set on the Hub gives both, unless `eval` names others. A name that exists
    here, or that `looks_local`, is never looked up on the Hub.

    Raises:
        DatasetError: sources that are missing or cannot be read; all faults at once.
    """
    faults: list[Fault] = []
    found_train: list[Source] = []
    found_eval: list[Source] = []
    for wanted, split, beside, into in [
        *((wanted, TRAIN, None if eval else EVAL, found_train) for wanted in train),
        *((wanted, EVAL, None, found_eval) for wanted in eval),
    ]:
        try:
            source, other = _find(wanted, split, beside)
        except DatasetError as error:
            faults += error.faults
            continue
        into.append(source)
        if other is not None:
            found_eval.append(other)
    if faults:
        raise DatasetError(faults)
    return found_train, found_eval


def _source(wanted: SourceSpec, name: str, records: Callable[[], Records], **of: Any) -> Source:
    """Build a source with the options that the user gave it, unless `of` replaces them."""
    how = {"weight": wanted.weight, "format": wanted.format, "columns": wanted.columns}
    return Source(name=name, records=records, **{**how, "limit": wanted.limit, **of})


def _find(
    wanted: SourceSpec, split: Split, beside: Split | None = None
) -> tuple[Source, Source | None]:
    """Find the source of a split, and of a second split that may be in the same place.

    Args:
        wanted: the source as the user names it.
        split: required split. A file that is named directly serves as any split.
        beside: optional split.
    """
    name = wanted.name
    path = expanded(name)
    try:
        if path.is_dir():
            return _in_folder(wanted, path, split, beside)
        if path.exists():
            return _file(wanted, path), None
        listed, mark, entry = name.rpartition("#")
        if mark and (expanded(listed).exists() or listed.endswith(dataset_info.FILE)):
            return _in_list(wanted, expanded(listed), entry), None
    except OSError as error:
        raise DatasetError.at(name, f"cannot be read: {error.strerror}") from None
    address = None if looks_local(path) else HUB_ID.fullmatch(name)
    if address is None:
        raise DatasetError([_missing(name, path)])
    hub, subset, chosen = address.groups()
    if chosen:
        split, beside = (chosen,), None
    return _on_hub(wanted, hub, subset, split, beside)


def looks_local(path: Path) -> bool:
    """Return True if a missing path was meant as one: its folder exists, or it has a known suffix.

    >>> looks_local(Path("data/train.jsonl")), looks_local(Path("somebody/poems"))
    (True, False)
    """
    known = kind_of_file(path) or path.suffix.lower() in COMPRESSED
    return bool(known) or (len(path.parts) > 1 and path.parent.is_dir())


def _missing(name: str, path: Path) -> Fault:
    problem = "no such file or folder"
    if "/" not in name and not looks_local(path):
        problem += ", and not the id of a data set on the hub either (owner/name)"
    meant = similar_name(path)
    hint = None if meant is None else f"did you mean {meant}?"
    if hint is None and not path.is_absolute():
        hint = "a relative path counts from the folder that the command runs in"
    return Fault(name, problem, hint)


# --- local ---


def _file(wanted: SourceSpec, path: Path, **how: Any) -> Source:
    if problem := not_regular(path):
        raise DatasetError.at(str(path), problem, "write the data to a file and use its path")
    if path.name == dataset_info.FILE:
        hint = f"name it as {path}#NAME; it has {some(read_list(path))}"
        raise DatasetError.at(str(path), "expected one of the data sets that it lists", hint)
    if kind_of_file(path) is None:
        kinds = ", ".join(READERS)
        hint = 'write one JSON object a line into a .jsonl file, such as {"text": "..."}'
        raise DatasetError.at(str(path), f"expected a file of a known kind ({kinds})", hint)
    state = _state(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    of = {"sha256": sha256, "commit": None, "state": state}
    return _source(wanted, str(path), partial(read, path), **of, **how)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _in_folder(
    wanted: SourceSpec, folder: Path, split: Split, beside: Split | None
) -> tuple[Source, Source | None]:
    def files(split: Split) -> list[Path]:
        known = (path for path in folder.iterdir() if kind_of_file(path) is not None)
        return sorted(path for path in known if unpacked(path).stem in split)

    def only(split: Split, **how: Any) -> Source:
        found = files(split)
        if len(found) == 1:
            return _file(wanted, found[0], **how)
        kinds = f"one file named {' or '.join(split)} ({', '.join(READERS)})"
        seen = ", ".join(file.name for file in found) or "none"
        hint = "keep one of them" if found else "rename the file, or name it instead of its folder"
        raise DatasetError.at(str(folder), f"expected {kinds}; found {seen}", hint)

    return only(split), only(beside, weight=1.0) if beside and files(beside) else None


def _in_list(wanted: SourceSpec, place: Path, name: str) -> Source:
    """Find the source that an entry of a dataset_info.json describes."""
    file = place / dataset_info.FILE if place.is_dir() else place
    if not file.is_file():
        hint = f"name a {dataset_info.FILE}, or the folder that holds it, before the #"
        raise DatasetError.at(wanted.name, f"no {dataset_info.FILE} in {place}", hint)
    entry = read_entry(file, name)
    if wanted.format != "auto" or wanted.columns:
        own = "data.columns" if wanted.columns else "data.format"
        problem = f"expected no {own}, because the entry defines the format of its records"
        raise DatasetError.at(wanted.name, problem, "give this source `format: auto`")
    how = {"format": entry.format, "columns": entry.columns, "turns": entry.turns}
    if entry.file is not None:
        if not entry.file.exists():
            raise DatasetError.at(f"{file}: {name}.file_name", f"no such file: {entry.file}")
        return _file(wanted, entry.file, **how)
    assert entry.hub is not None
    return _on_hub(wanted, entry.hub, entry.subset, (entry.split,), None, **how)[0]


# --- on the Hub ---


def _on_hub(
    wanted: SourceSpec,
    hub: str,
    subset: str | None,
    split: Split,
    beside: Split | None,
    **how: Any,
) -> tuple[Source, Source | None]:
    # Not an import statement, for which type checkers find the root folder of sample data.
    hugging_face = importlib.import_module("datasets")
    offline = bool(hugging_face.config.HF_HUB_OFFLINE)
    try:
        builder = hugging_face.load_dataset_builder(*([hub, subset] if subset else [hub]))
        splits: Mapping[str, Iterable[Any]]
        if wanted.limit is None:
            builder.download_and_prepare()
            splits = builder.as_dataset()
        else:  # only the start of a data set is fetched, whatever its size
            splits = builder.as_streaming_dataset()
    except Exception as error:  # several libraries raise many kinds
        asked = wanted.name if hub in wanted.name else f"{wanted.name}: {hub}"
        raise DatasetError([_unreachable(asked, hub, error, offline=offline)]) from None
    place = f"{hub}:{subset}" if subset else hub

    def first(split: Split, **how: Any) -> Source | None:
        chosen = next((name for name in split if name in splits), None)
        if chosen is None:
            return None
        full = f"{place}[{chosen}]"
        rows = partial(_hub_rows, full, hub, splits[chosen], offline=offline)
        # For a data set without a script, the only kind that is loaded, the hash is the commit.
        return _source(wanted, full, rows, sha256=None, commit=builder.hash, **how)

    source = first(split, **how)
    if source is None:
        problem = f"expected a split named {' or '.join(split)}; found {', '.join(splits)}"
        raise DatasetError.at(place, problem, f"name the split that you want: {place}[SPLIT]")
    return source, first(beside, weight=1.0) if beside else None


def _hub_rows(name: str, hub: str, rows: Iterable[Any], *, offline: bool) -> Records:
    try:
        for number, value in enumerate(rows, 1):
            yield checked(f"{name}:{number}", value, filled=True)
    except Exception as error:  # a data set that is streamed is fetched as it is read
        yield (_unreachable(name, hub, error, offline=offline),)


def _unreachable(name: str, hub: str, error: Exception, *, offline: bool) -> Fault:
    if not isinstance(error, ConnectionError):
        reason = (str(error) or type(error).__name__).splitlines()[0]
        hint = "download the data set, and name its file or folder"
        return Fault(name, f"cannot be loaded from the hub: {reason}", hint)
    if offline:
        problem = (
            "not here, not in the cache, and HF_HUB_OFFLINE is set, so the Hub was not contacted"
        )
        return Fault(name, problem, "unset HF_HUB_OFFLINE once, or name a local file")
    problem = "not here, not in the cache, and the hub cannot be reached"
    hint = (
        f"check the network; or, on a machine that has one, hf download {hub} "
        "--repo-type dataset --local-dir FOLDER, and name a file of it"
    )
    return Fault(name, problem, hint)
