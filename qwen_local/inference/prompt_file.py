"""The rows of a file that are to be answered, in every chat format of training data.

A row is read as training reads it, except that its answer may be missing. The prompt is the
conversation up to the answer at its end; the answer, if any, stays in the example as the reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_local.datasets.column_map import Format
from qwen_local.datasets.faults import some
from qwen_local.datasets.formats import Example, read_record
from qwen_local.datasets.record_files import READERS, Faults, Record, kind_of_file, read
from qwen_local.errors import DatasetError, Fault
from qwen_local.inference.generator import Messages, system_message

FORMATS: Mapping[str, Format] = {
    "messages": "messages",
    "prompt": "prompt",
    "instruction": "alpaca",
    "conversations": "sharegpt",
}
"""The key that identifies the format of a row, with or without an answer."""
ASKING = ("user", "tool")
"""Roles that an answer can follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRow:
    """One row to be answered."""

    example: Example
    """The row as it was read; behind `messages`, its content holds the reference answer, if any."""
    id: str | int
    """The row's own id, or its number in the file, from 1."""
    messages: Messages
    """The conversation up to the answer, with the row's own system message first."""
    copied: Mapping[str, Any]
    """Keys that the output row repeats: `prompt`, with `system` if it has one, or `messages`; and
    `tools`, if it has some."""

    def with_system(self, system: str | None) -> Messages:
        """Return the conversation, with this system message if the row has none."""
        own = self.messages[0]["role"] == "system"
        return self.messages if own else [*system_message(system), *self.messages]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFile:
    """All rows of a file."""

    rows: tuple[PromptRow, ...]
    ignored: Mapping[str, int]
    """Number of rows by key that has no meaning here."""


def read_prompts(path: Path) -> PromptFile:
    """Read every row of a file, in its order.

    Raises:
        DatasetError: rows cannot be answered; all faults at once.
    """
    if kind_of_file(path) is None:
        kinds = ", ".join(READERS)
        raise DatasetError.at(str(path), f"expected one of {kinds}; found {path.suffix or 'none'}")
    rows: list[PromptRow] = []
    faults: list[Fault] = []
    ignored: Counter[str] = Counter()
    number = 0
    for record in read(path):
        number += 1
        if not isinstance(record, Record):
            faults += record
            continue
        row = _read(record, number)
        if isinstance(row, tuple):
            faults += row
            continue
        ignored.update(row.example.ignored)
        rows.append(row)
    faults += _repeated_ids(rows)
    if not number:
        faults.append(Fault(str(path), "expected rows; it is empty"))
    if faults:
        raise DatasetError(faults)
    return PromptFile(rows=tuple(rows), ignored=ignored)


def _repeated_ids(rows: Sequence[PromptRow]) -> Iterator[Fault]:
    """Yield a fault for each row with the id of another: ids name their answers."""
    first: dict[str | int, str] = {}
    for row in rows:
        where = row.example.where
        if (before := first.setdefault(row.id, where)) != where:
            yield Fault(f"{where}: id", f"{row.id!r:.60} is also the id of {before}")


def _read(record: Record, number: int) -> PromptRow | Faults:
    """Read one row, or return its faults.

    Args:
        record: the row.
        number: its number in the file, from 1.
    """
    value = record.value
    key = next((key for key in FORMATS if key in value), None)
    if key is None:
        problem = (
            f"expected the key prompt, messages, instruction or conversations; found {some(value)}"
        )
        hint = 'for example {"prompt": "What color is the sky?"}'
        return (Fault(record.where, problem, hint),)
    example = read_record(record, FORMATS[key], open=True)
    if not isinstance(example, Example):
        return example
    messages = _without_answer(example)
    faults = []
    if messages and not messages[-1]["content"].strip():
        faults.append(Fault(f"{record.where}: {key}", "expected text to answer; it is empty"))
    if not messages or messages[-1]["role"] not in ASKING:
        problem = "expected a user message to answer"
        faults.append(Fault(f"{record.where}: {key}", problem))
    if faults:
        return tuple(faults)
    copied: dict[str, Any] = {"messages": messages}
    if key == "prompt":
        copied = {"prompt": value["prompt"]}
        if messages[0]["role"] == "system":
            copied["system"] = value["system"]
    if example.tools:
        copied["tools"] = list(example.tools)
    return PromptRow(
        example=example,
        id=number if example.meta.id is None else example.meta.id,
        messages=messages,
        copied=copied,
    )


def _without_answer(example: Example) -> Messages:
    """Return the conversation without the assistant messages at its end."""
    messages = example.content
    assert not isinstance(messages, str)  # only the format text has it so
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]
