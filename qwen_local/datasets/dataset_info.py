"""Read entries of `dataset_info.json`, LLaMA-Factory's list of data sets.

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
from qwen_local.datasets.json_text import json_fault, parse_json, unusable_text
from qwen_local.errors import DatasetError, Fault

FILE = "dataset_info.json"
MAX_FILE_BYTES = 2**24
"""Maximum size of the list in bytes; far above any list that is written by hand."""

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
"""Our key for each LLaMA-Factory column key, by the value of `formatting`."""

DEFAULT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
"""Defaults of the tags in LLaMA-Factory's sharegpt format."""
TAG_ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": CALL,
    "system_tag": "system",
}

OTHER_HUB_KEYS = ("ms_hub_url", "om_hub_url")
"""Keys for other hubs, which are ignored if `file_name` or `hf_hub_url` is present."""
ENTRY_KEYS = (
    "file_name",
    "hf_hub_url",
    "subset",
    "split",
    "formatting",
    "columns",
    "tags",
    *OTHER_HUB_KEYS,
)
UNSUPPORTED_KEYS = {
    "ranking": "preference data (a chosen and a rejected answer) are not supported",
    "kto_tag": "preference data (answers marked good or bad) are not supported",
    "chosen": "preference data (a chosen and a rejected answer) are not supported",
    "rejected": "preference data (a chosen and a rejected answer) are not supported",
    "images": "images are not supported",
    "videos": "videos are not supported",
    "audios": "audio is not supported",
    "script_url": "loading scripts are not supported",
    "cloud_file_name": "cloud storage is not supported",
    "folder": "a folder on the Hub cannot be selected",
    "num_samples": "sampling is not supported",
}
"""Error message for each unsupported key of an entry or of its `columns`."""
HINTS = {
    "cloud_file_name": "download the file and set file_name",
    "folder": "download the folder and set file_name to one of its files",
    "num_samples": "remove the key and set the limit of the source",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetEntry:
    """Location and format of the data of an entry."""

    file: Path | None
    """Local file, or None if the data are on the Hub."""
    hub: str | None
    """Hub id, or None if the data are in a local file."""
    subset: str | None
    split: str
    format: Format
    columns: Mapping[str, str] = field(default_factory=dict)
    turns: Turns | None = None


def read_entry(file: Path, name: str) -> DatasetEntry:
    """Read the entry with this name.

    Raises:
        DatasetError: the file is invalid or has no such entry, or the entry is invalid or
            unsupported; the error lists every fault of the entry.
    """
    entries = read_list(file)
    if name not in entries:
        hint = meant(name, entries) or f"available entries: {some(entries)}"
        raise DatasetError.at(str(file), f"no entry {quoted(name)}", hint)
    reading = _EntryReader(f"{file}: {name}")
    entry = reading.entry(entries[name], file.parent)
    if entry is None or reading.faults:
        raise DatasetError(reading.faults)
    return entry


def read_list(file: Path) -> Mapping[str, Any]:
    """Return the entries by name, unchecked.

    Raises:
        DatasetError: the file cannot be read or is not a JSON object.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise DatasetError.at(str(file), f"expected at most {MAX_FILE_BYTES} bytes")
        entries, problems = parse_json(data.decode("utf-8-sig"))
    except OSError as error:
        raise DatasetError.at(str(file), f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = f"expected UTF-8; found byte 0x{error.object[error.start]:02x}"
        raise DatasetError.at(f"{file}:{line}", problem, "save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        where = f"{file}:{getattr(error, 'line', 1)}"
        raise DatasetError([json_fault(where, error)]) from None
    faults = [Fault(str(file), problem, hint) for problem, hint in problems]
    faults += (Fault(f"{file}: {at}", what, hint) for at, what, hint in unusable_text(entries))
    if not isinstance(entries, dict):
        faults.append(Fault(str(file), f"expected an object of entries; found {found(entries)}"))
    if faults:
        raise DatasetError(faults)
    named: Mapping[str, Any] = entries
    return named


class _EntryReader:
    """Reader of one entry that collects its faults."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.faults: list[Fault] = []

    def fault(self, key: str, problem: str, hint: str | None = None) -> None:
        self.faults.append(Fault(f"{self.where}.{key}" if key else self.where, problem, hint))

    def entry(self, value: object, folder: Path) -> DatasetEntry | None:
        if not isinstance(value, dict):
            self.fault("", f"expected an object; found {found(value)}")
            return None
        self._refuse(value, ENTRY_KEYS, "")
        formatting = self._format(value.get("formatting", "alpaca"))
        columns = self._texts(value, "columns", COLUMNS[formatting])
        tags = self._texts(value, "tags", DEFAULT_TAGS if formatting == "sharegpt" else ())
        file, hub = self._text(value, "file_name"), self._text(value, "hf_hub_url")
        if file is None and hub is None and not self.faults:
            seen = next((key for key in OTHER_HUB_KEYS if key in value), "neither")
            self.fault("", f"expected file_name or hf_hub_url; found {seen}")
        path = None if file is None else folder / file
        if path is not None and hub is not None and not path.exists():
            path = None
        return DatasetEntry(
            file=path,
            hub=None if path else hub,
            subset=self._text(value, "subset"),
            split=self._text(value, "split") or "train",
            format=formatting,
            columns={COLUMNS[formatting][key]: column for key, column in columns.items()},
            turns=_turns(tags) if tags else None,
        )

    def _refuse(self, entry: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
        """Add a fault for every unknown or unsupported key."""
        for key, value in entry.items():
            if key in UNSUPPORTED_KEYS and value not in (None, False):
                hint = HINTS.get(key, "use an entry with plain conversations")
                self.fault(prefix + key, UNSUPPORTED_KEYS[key], hint)
            elif key not in UNSUPPORTED_KEYS and key not in known:
                hint = meant(key, known) or f"valid keys: {some(known)}"
                self.fault(prefix + key, "unknown key", hint)

    def _format(self, formatting: object) -> Format:
        for format in COLUMNS:
            if format == formatting:
                return format
        problem = f"expected {' or '.join(COLUMNS)}; found {found(formatting)}"
        self.fault("formatting", problem)
        return "alpaca"

    def _text(self, entry: Mapping[str, Any], key: str) -> str | None:
        value = entry.get(key)
        if value is None or (isinstance(value, str) and value):
            return value
        self.fault(key, f"expected a string; found {found(value)}")
        return None

    def _texts(self, entry: Mapping[str, Any], key: str, known: Iterable[str]) -> dict[str, str]:
        """Return a mapping of known keys to strings."""
        value = entry.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fault(key, f"expected an object; found {found(value)}")
            return {}
        if not known:
            self.fault(key, "only valid with the sharegpt format")
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
    """Return the conversation layout for an entry with custom tags."""
    own = {**DEFAULT_TAGS, **tags}
    named = {own[tag]: role for tag, role in TAG_ROLES.items()}
    return Turns(
        role_key=own["role_tag"],
        text_key=own["content_tag"],
        roles={**{k: v for k, v in SHAREGPT.roles.items() if k == "system"}, **named},
        main=tuple(named),
    )
