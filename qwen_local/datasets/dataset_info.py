"""Entries of `dataset_info.json`, LLaMA-Factory's list of data sets: where each is, how it is
written.

    {"poems": {"file_name": "poems.json", "columns": {"prompt": "title", "response": "poem"}}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_local.datasets.column_map import Format
from qwen_local.datasets.faults import found, meant, quoted, some
from qwen_local.datasets.formats import CALL, SHAREGPT, Turns
from qwen_local.datasets.json_text import malformed, unusable_text, whole
from qwen_local.errors import DatasetError, Fault

FILE = "dataset_info.json"
LARGEST = 2**24
"""Bytes of such a list: far above any that is written by hand."""

COLUMNS: Mapping[Format, Mapping[str, str]] = {
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "history": "history",
        "system": "system",
        "tools": "tools",
    },
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
}
"""By the value of `formatting`: our key for each of theirs."""

TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
"""What their sharegpt format has where an entry says nothing else."""
ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": CALL,
    "system_tag": "system",
}

ELSEWHERE = ("ms_hub_url", "om_hub_url")
"""Other hubs, on which the same data are."""
KNOWN = ("file_name", "hf_hub_url", "subset", "split", "formatting", "columns", "tags", *ELSEWHERE)
REFUSED = {
    "ranking": "preferences (a chosen and a rejected answer) are not learned",
    "kto_tag": "preferences (answers marked good or bad) are not learned",
    "chosen": "preferences (a chosen and a rejected answer) are not learned",
    "rejected": "preferences (a chosen and a rejected answer) are not learned",
    "images": "pictures are not learned",
    "videos": "films are not learned",
    "audios": "sound is not learned",
    "script_url": "a script is not run",
    "cloud_file_name": "a cloud's storage is not read",
    "folder": "a folder on the hub cannot be chosen",
    "num_samples": "rows are not sampled",
}
"""What an entry may say and we do not do, and why; as keys of the entry or of its `columns`."""
MENDS = {
    "cloud_file_name": "download the file, and name it in file_name",
    "folder": "download the folder, and name a file of it in file_name",
    "num_samples": "remove it, and set the limit of the source",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Where the data of an entry are, and how they are written."""

    file: Path | None
    """None where they are on the hub."""
    hub: str | None
    """The id of the data set there, where it is on the hub."""
    subset: str | None
    split: str
    format: Format
    columns: Mapping[str, str] = field(default_factory=dict)
    turns: Turns | None = None


def read_entry(file: Path, name: str) -> Entry:
    """The entry of this name.

    Raises:
        DatasetError: the file is no such list, has no such entry, or one that we do not read;
            every fault of the entry.
    """
    entries = read_list(file)
    if name not in entries:
        hint = meant(name, entries) or f"the entries are {some(entries)}"
        raise DatasetError.at(str(file), f"no entry {quoted(name)}", hint)
    reading = _Entry(f"{file}: {name}")
    entry = reading.entry(entries[name], file.parent)
    if entry is None or reading.faults:
        raise DatasetError(reading.faults)
    return entry


def read_list(file: Path) -> Mapping[str, Any]:
    """The entries by name, not looked into.

    Raises:
        DatasetError: the file cannot be read, or is no JSON object.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise DatasetError.at(str(file), f"expected at most {LARGEST} bytes")
        entries, noted = whole(data.decode("utf-8-sig"))
    except OSError as error:
        raise DatasetError.at(str(file), f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = f"expected UTF-8; found byte 0x{error.object[error.start]:02x}"
        raise DatasetError.at(f"{file}:{line}", problem, "save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        where = f"{file}:{getattr(error, 'line', 1)}"
        raise DatasetError([malformed(where, error)]) from None
    faults = [Fault(str(file), problem, hint) for problem, hint in noted]
    faults += (Fault(f"{file}: {at}", what, hint) for at, what, hint in unusable_text(entries))
    if not isinstance(entries, dict):
        faults.append(Fault(str(file), f"expected an object of entries; found {found(entries)}"))
    if faults:
        raise DatasetError(faults)
    named: Mapping[str, Any] = entries
    return named


class _Entry:
    """One entry being read, and what is wrong with it."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.faults: list[Fault] = []

    def fault(self, key: str, problem: str, hint: str | None = None) -> None:
        self.faults.append(Fault(f"{self.where}.{key}" if key else self.where, problem, hint))

    def entry(self, said: object, folder: Path) -> Entry | None:
        if not isinstance(said, dict):
            self.fault("", f"expected an object; found {found(said)}")
            return None
        self._refuse(said, KNOWN, "")
        formatting = self._format(said.get("formatting", "alpaca"))
        columns = self._texts(said, "columns", COLUMNS[formatting])
        tags = self._texts(said, "tags", TAGS if formatting == "sharegpt" else ())
        file, hub = self._text(said, "file_name"), self._text(said, "hf_hub_url")
        if file is None and hub is None and not self.faults:
            seen = next((key for key in ELSEWHERE if key in said), "neither")
            self.fault("", f"expected file_name or hf_hub_url; found {seen}")
        path = None if file is None else folder / file
        if path is not None and hub is not None and not path.exists():
            path = None
        return Entry(
            file=path,
            hub=None if path else hub,
            subset=self._text(said, "subset"),
            split=self._text(said, "split") or "train",
            format=formatting,
            columns={COLUMNS[formatting][key]: column for key, column in columns.items()},
            turns=_turns(tags) if tags else None,
        )

    def _refuse(self, said: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
        """Tells every key that we do not know, or do not do."""
        for key, value in said.items():
            if key in REFUSED and value not in (None, False):
                hint = MENDS.get(key, "choose an entry of plain conversations")
                self.fault(prefix + key, REFUSED[key], hint)
            elif key not in REFUSED and key not in known:
                hint = meant(key, known) or f"the keys are {some(known)}"
                self.fault(prefix + key, "unknown key", hint)

    def _format(self, formatting: object) -> Format:
        for format in COLUMNS:
            if format == formatting:
                return format
        problem = f"expected {' or '.join(COLUMNS)}; found {found(formatting)}"
        self.fault("formatting", problem)
        return "alpaca"

    def _text(self, said: Mapping[str, Any], key: str) -> str | None:
        value = said.get(key)
        if value is None or (isinstance(value, str) and value):
            return value
        self.fault(key, f"expected a string; found {found(value)}")
        return None

    def _texts(self, said: Mapping[str, Any], key: str, known: Iterable[str]) -> dict[str, str]:
        """A mapping of known keys to strings."""
        value = said.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fault(key, f"expected an object; found {found(value)}")
            return {}
        if not known:
            self.fault(key, "these are for the sharegpt format")
            return {}
        self._refuse(value, known, f"{key}.")
        texts = {}
        for name, text in value.items():
            if name not in known or text is None:
                continue
            if isinstance(text, str) and text:
                texts[name] = text
            else:
                self.fault(f"{key}.{name}", f"expected a string; found {found(text)}")
        return texts


def _turns(tags: Mapping[str, str]) -> Turns:
    """How conversations are written, where an entry has tags of its own."""
    own = {**TAGS, **tags}
    named = {own[tag]: role for tag, role in ROLES.items()}
    return Turns(
        role_key=own["role_tag"],
        text_key=own["content_tag"],
        roles={**{k: v for k, v in SHAREGPT.roles.items() if k == "system"}, **named},
        main=tuple(named),
    )
