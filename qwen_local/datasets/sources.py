"""Where rows come from: a file, a folder with train and valid files, or a data set on the hub."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qwen_local.datasets.files import READERS, Records, checked, read
from qwen_local.errors import DatasetError, Fault

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

Split = tuple[str, ...]
"""The names that a split may have."""
TRAIN: Split = ("train",)
EVAL: Split = ("valid", "validation", "eval")
"""The first is mlx-lm's. A test split is no business of training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A source that was found."""

    name: str
    """The path, or the hub id with the split: `owner/name[train]`."""
    read: Callable[[], Records]
    sha256: str | None
    """Of the file; None for a source on the hub."""
    commit: str | None
    """Of the data set on the hub; None for a file."""


def locate(train: str, eval: str | None) -> tuple[Source, Source | None]:
    """The source of the training rows and that of the evaluation rows, where there is one.

    A folder or a data set on the hub gives both, unless `eval` names another. What exists here is
    never looked up on the hub, nor is what `looks_local`.

    Raises:
        DatasetError: a source is not there; both are named.
    """
    if eval is None:
        return _find(train, TRAIN, beside=EVAL)
    faults: list[Fault] = []
    sources: list[Source] = []
    for name, split in ((train, TRAIN), (eval, EVAL)):
        try:
            sources.append(_find(name, split)[0])
        except DatasetError as error:
            faults += error.faults
    if faults:
        raise DatasetError(faults)
    return sources[0], sources[1]


def _find(name: str, split: Split, beside: Split | None = None) -> tuple[Source, Source | None]:
    """The source of a split, and that of another one which may be in the same place.

    Args:
        name: what the user wrote.
        split: must be there. A file that is named directly is any split.
        beside: may be there.
    """
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - Path raises for `~nobody`
    try:
        if path.is_dir():
            return _in_folder(path, split, beside)
        if path.is_file():
            return _file(path), None
        if path.exists():
            raise DatasetError.at(name, "expected a file or a folder; found neither of them")
    except OSError as error:
        raise DatasetError.at(name, f"cannot be read: {error.strerror}") from None
    if looks_local(path) or not HUB_ID.fullmatch(name):
        raise DatasetError([_missing(name, path)])
    return _on_hub(name, split, beside)


def looks_local(path: Path) -> bool:
    """Whether a path that is not there was meant as one: its folder is there, or it has a suffix.

    >>> looks_local(Path("data/train.jsonl")), looks_local(Path("somebody/poems"))
    (True, False)
    """
    return path.suffix.lower() in READERS or (len(path.parts) > 1 and path.parent.is_dir())


def _missing(name: str, path: Path) -> Fault:
    problem = "no such file or folder"
    if "/" not in name and not looks_local(path):
        problem += ", and not the id of a data set on the hub either (owner/name)"
    beside = []
    with contextlib.suppress(OSError):
        beside = [other.name for other in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, beside, n=1)
    hint = f"did you mean {path.with_name(close[0])}?" if close else None
    if hint is None and not path.is_absolute():
        hint = "a relative path counts from the folder that the command runs in"
    return Fault(name, problem, hint)


def _file(path: Path) -> Source:
    if path.suffix.lower() not in READERS:
        kinds = ", ".join(READERS)
        hint = 'write one JSON object a line into a .jsonl file, such as {"text": "..."}'
        raise DatasetError.at(str(path), f"expected a file of a known kind ({kinds})", hint)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Source(name=str(path), read=partial(read, path), sha256=sha256, commit=None)


def _in_folder(folder: Path, split: Split, beside: Split | None) -> tuple[Source, Source | None]:
    def files(split: Split) -> list[Path]:
        known = (path for path in folder.iterdir() if path.suffix.lower() in READERS)
        return sorted(path for path in known if path.stem in split)

    def only(split: Split) -> Source:
        found = files(split)
        if len(found) == 1:
            return _file(found[0])
        wanted = f"one file named {' or '.join(split)} ({', '.join(READERS)})"
        seen = ", ".join(file.name for file in found) or "none"
        hint = "keep one of them" if found else "rename the file, or name it instead of its folder"
        raise DatasetError.at(str(folder), f"expected {wanted}; found {seen}", hint)

    return only(split), only(beside) if beside and files(beside) else None


def _on_hub(name: str, split: Split, beside: Split | None) -> tuple[Source, Source | None]:
    # Not an import statement, for which type checkers find the root folder of sample data.
    hugging_face = importlib.import_module("datasets")

    try:
        builder = hugging_face.load_dataset_builder(name)
        builder.download_and_prepare()
        found: Mapping[str, Iterable[Any]] = builder.as_dataset()
    except Exception as error:  # of many kinds, from several libraries
        fault = _unreachable(name, error, offline=hugging_face.config.HF_HUB_OFFLINE)
        raise DatasetError([fault]) from None

    def first(split: Split) -> Source | None:
        chosen = next((name for name in split if name in found), None)
        if chosen is None:
            return None
        full = f"{name}[{chosen}]"
        rows = partial(_hub_rows, full, found[chosen])
        # For a data set without a script, the only kind that is loaded, the hash is the commit.
        return Source(name=full, read=rows, sha256=None, commit=builder.hash)

    source = first(split)
    if source is None:
        problem = f"expected a split named {' or '.join(split)}; found {', '.join(found)}"
        raise DatasetError.at(name, problem, "save the split that you want as a .jsonl file")
    return source, first(beside) if beside else None


def _hub_rows(name: str, rows: Iterable[Any]) -> Records:
    for number, value in enumerate(rows, 1):
        yield checked(f"{name}:{number}", value)


def _unreachable(name: str, error: Exception, *, offline: bool) -> Fault:
    if not isinstance(error, ConnectionError):
        said = (str(error) or type(error).__name__).splitlines()[0]
        hint = "download the data set, and name its file or folder"
        return Fault(name, f"cannot be loaded from the hub: {said}", hint)
    if offline:
        problem = "not here, not in the cache, and HF_HUB_OFFLINE forbids to ask the hub"
        return Fault(name, problem, "unset HF_HUB_OFFLINE once, or name a local file")
    problem = "not here, not in the cache, and the hub cannot be reached"
    hint = (
        f"check the network; or, on a machine that has one, hf download {name.partition('[')[0]} "
        "--repo-type dataset --local-dir FOLDER, and name a file of it"
    )
    return Fault(name, problem, hint)
