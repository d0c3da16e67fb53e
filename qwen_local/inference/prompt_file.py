"""The rows of a file that are to be answered, in every way that rows of training data are written.

A question is a row of training data whose answer is still to come: it is given an empty one, read
as training reads it, and what the assistant says at its end is taken off again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_local.datasets.column_map import Format
from qwen_local.datasets.faults import found, some
from qwen_local.datasets.formats import CALL, OPENAI, SHAREGPT, Example, Turns, examples
from qwen_local.datasets.record_files import READERS, Record, kind_of_file, read
from qwen_local.errors import DatasetError, Fault
from qwen_local.inference.generator import Messages, system_message

OWN = ("id", "system")
"""Keys that mean something in a row to be answered, whatever else it is."""
FORMATS: Mapping[str, Format] = {
    "messages": "messages",
    "prompt": "prompt",
    "instruction": "alpaca",
    "conversations": "sharegpt",
}
"""The key that a row is known by, whether it has an answer or not."""
ASKING = ("user", "tool")
"""Roles that an answer follows on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One row, ready to be asked."""

    where: str
    """`questions.jsonl:17`."""
    id: str | int
    """Its own, or its number in the file, from 1."""
    messages: Messages
    """The conversation up to where the assistant is to go on; at its head the row's own system
    message."""
    tools: tuple[Mapping[str, Any], ...]
    asked: Mapping[str, Any]
    """What its row of answers repeats: `prompt`, with `system` where it has one, or `messages`; and
    `tools`, where it has some."""

    def behind(self, system: str | None) -> Messages:
        """The conversation, with this system message where the row has none."""
        own = self.messages[0]["role"] == "system"
        return self.messages if own else [*system_message(system), *self.messages]


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """All rows of a file."""

    rows: tuple[Question, ...]
    ignored: Mapping[str, int]
    """Keys that mean nothing here, and how many rows have them."""


def read_questions(path: Path) -> Questions:
    """Every row of a file, in its order.

    Raises:
        DatasetError: rows cannot be asked; all of them at once.
    """
    if kind_of_file(path) is None:
        kinds = ", ".join(READERS)
        raise DatasetError.at(str(path), f"expected one of {kinds}; found {path.suffix or 'none'}")
    rows: list[Question] = []
    faults: list[Fault] = []
    ignored: Counter[str] = Counter()
    number = 0
    for record in read(path):
        number += 1
        if not isinstance(record, Record):
            faults += record
            continue
        reading = _Reading(record, number)
        faults += reading.faults
        ignored.update(reading.ignored)
        if reading.question is not None:
            rows.append(reading.question)
    faults += _twice(rows)
    if not number:
        faults.append(Fault(str(path), "expected rows; it is empty"))
    if faults:
        raise DatasetError(faults)
    return Questions(rows=tuple(rows), ignored=ignored)


def _twice(rows: Sequence[Question]) -> Iterator[Fault]:
    """Rows whose id another row has: their answers could not be told apart."""
    first: dict[str | int, str] = {}
    for row in rows:
        if (before := first.setdefault(row.id, row.where)) != row.where:
            yield Fault(f"{row.where}: id", f"{row.id!r:.60} is that of {before}, too")


class _Reading:
    """One row being read."""

    def __init__(self, record: Record, number: int) -> None:
        self.faults: list[Fault] = []
        self.ignored: tuple[str, ...] = ()
        self.question: Question | None = None
        self._where = record.where
        own = record.value.get("id")
        if own is not None and (not isinstance(own, str | int) or isinstance(own, bool)):
            self._fault("id", f"expected a string or a whole number; found {found(own)}")
        key = next((key for key in FORMATS if key in record.value), None)
        if key is None:
            problem = (
                "expected the key prompt, messages, instruction or conversations; "
                f"found {some(record.value)}"
            )
            hint = 'write the question so: {"prompt": "What colour is the sky?"}'
            self.faults.append(Fault(record.where, problem, hint))
            return
        format = FORMATS[key]
        system = self._system(record.value) if format in ("prompt", "messages") else []
        value = _with_an_empty_answer(record.value, format)
        (example,) = examples([Record(record.where, value, record.filled)], format)
        if not isinstance(example, Example):
            self.faults += example
            return
        assert not isinstance(example.content, str)  # only the format text has it so
        messages = system + _up_to_the_question(example.content)
        if messages and not messages[-1]["content"].strip():
            self._fault(key, "expected text to answer; it is empty")
        if not messages or messages[-1]["role"] not in ASKING:
            self._fault(key, "expected a message of the user that is to be answered")
        if sum(message["role"] == "system" for message in messages) > 1:
            problem = "expected one system message; found another in messages"
            self._fault("system", problem, "keep one of the two")
        self.ignored = tuple(key for key in example.ignored if key not in OWN)
        asked: dict[str, Any] = {"messages": messages}
        if format == "prompt":
            asked = {"prompt": record.value["prompt"]}
            if system:
                asked["system"] = record.value["system"]
        if example.tools:
            asked["tools"] = list(example.tools)
        if not self.faults:
            self.question = Question(
                where=record.where,
                id=number if own is None else own,
                messages=messages,
                tools=example.tools,
                asked=asked,
            )

    def _system(self, row: Mapping[str, Any]) -> Messages:
        """The system message that a row has beside its messages."""
        text = row.get("system")
        if text is not None and not isinstance(text, str):
            self._fault("system", f"expected a string; found {found(text)}")
            return []
        return system_message(text)

    def _fault(self, field: str, problem: str, hint: str | None = None) -> None:
        self.faults.append(Fault(f"{self._where}: {field}", problem, hint))


def _with_an_empty_answer(row: Mapping[str, Any], format: Format) -> dict[str, Any]:
    """The row as training would have it; an answer that is there is not looked at."""
    match format:
        case "messages":
            return {**row, "messages": _answered(row["messages"], OPENAI)}
        case "sharegpt":
            return {**row, "conversations": _answered(row["conversations"], SHAREGPT)}
        case "alpaca":
            return {**row, "output": ""}
        case _:
            return {**row, "completion": ""}


def _answered(items: Any, turns: Turns) -> Any:
    """A list of messages that ends with one of the assistant."""
    if not isinstance(items, list) or not items:
        return items
    last = items[-1]
    role = turns.roles.get(str(last.get(turns.role_key))) if isinstance(last, dict) else None
    if role in ("assistant", CALL):
        return items
    mine = next(name for name in turns.main if turns.roles[name] == "assistant")
    return [*items, {turns.role_key: mine, turns.text_key: ""}]


def _up_to_the_question(messages: Messages) -> Messages:
    """The conversation without what the assistant says at its end.

    >>> _up_to_the_question([{"role": "user"}, {"role": "assistant"}])
    [{'role': 'user'}]
    """
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]
