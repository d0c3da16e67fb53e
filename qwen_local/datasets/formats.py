"""Read records as conversations or plain text: the five formats and their rules.

One reader serves training and `generate --batch`. An open record is one that is to be answered: it
may lack its answer, and if it has one, that stays in the example as the reference.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from qwen_local.datasets import calls
from qwen_local.datasets.column_map import KEYS, TOOLS, Format
from qwen_local.datasets.column_map import FormatName as FormatName  # its home is here for others
from qwen_local.datasets.faults import found, meant, some
from qwen_local.datasets.reasoning import split
from qwen_local.datasets.record_files import Faults, Record
from qwen_local.errors import Fault

Message = dict[str, Any]
"""`role` (system, user, assistant or tool) and `content`, a string; an assistant message may have
`reasoning_content`, a string, and `tool_calls`, in the form of calls.py."""
Content = list[Message] | str
"""A conversation, as messages, or plain text."""


Label = str | int


@dataclass(frozen=True, kw_only=True, slots=True)
class Meta:
    """Description of a record, kept with its example; None where the record has none."""

    id: Label | None
    category: Label | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One record that follows the rules of its format."""

    where: str
    """Its place, such as `train.jsonl:17`."""
    meta: Meta
    format: str
    content: Content
    tools: tuple[Mapping[str, Any], ...]
    """Tools that the assistant can call, in the form of calls.py."""
    untrained: frozenset[int]
    """Indices into `content` of the assistant messages that the data leave out (`weight: 0`)."""
    empty: bool
    """True if an answer, or the plain text, is empty or white space: trained on, it would teach
    silence. Published data sets have such rows (two of CodeAlpaca's 2k file), so it is no fault."""
    ignored: tuple[str, ...]
    """Keys of the record that have no meaning here."""
    notes: tuple[str, ...]
    """What is allowed but unusual: see `_notes`."""


# --- keys and roles of conversations ---

CALL = "call"
"""The role of a message that consists of tool calls, as JSON text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """Keys and roles of the messages of a list."""

    role_key: str
    text_key: str
    roles: Mapping[str, str]
    """Our role for each of theirs; `CALL` for messages that hold calls."""
    main: tuple[str, ...]
    """Their roles that an error message lists."""


OPENAI = Turns(
    role_key="role",
    text_key="content",
    roles={
        "system": "system",
        "user": "user",
        "assistant": "assistant",
        "tool": "tool",
        "developer": "system",
        "function": "tool",
    },
    main=("system", "user", "assistant", "tool"),
)
SHAREGPT = Turns(
    role_key="from",
    text_key="value",
    roles={
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "system": "system",
        "function_call": CALL,
        "tool_call": CALL,
        "observation": "tool",
        "tool": "tool",
        "tool_response": "tool",
    },
    main=("human", "gpt", "system", "function_call", "observation"),
)
SYNONYMS = (
    {"assistant", "gpt", "ai", "bot", "chatgpt", "model"},
    {"user", "human"},
    {"system", "developer"},
    {"tool", "observation", "tool_response", "function"},
    {"function_call", "tool_call"},
)
"""Role names with the same meaning in other tools, for the hint."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of the assistant's reasoning, the one that wins first."""
CALLS = ("tool_calls", "function_call")
"""Keys of tool calls; the second is OpenAI's older name, for a single call."""
LINKS = {"assistant": ("weight",), "tool": ("name", "tool_call_id")}
"""Further known keys by role: read, or redundant with the order of the messages."""


class _Reading:
    """One record being read, with the faults and ignored keys found so far."""

    def __init__(
        self, record: Record, columns: Mapping[str, str], turns: Turns | None, *, open: bool
    ) -> None:
        self.where, self.record = record.where, record.value
        self.own = calls.without_nulls if record.filled else lambda value: value
        self.columns, self.turns, self.open = columns, turns, open
        self.faults: list[Fault] = []
        self.ignored: list[str] = []
        self.untrained: set[int] = set()
        self.empty = False

    def fault(self, field: str, problem: str, hint: str | None = None) -> None:
        self.faults.append(Fault(f"{self.where}: {field}", problem, hint))

    def ignore(self, record: Mapping[str, Any], known: Iterable[str], prefix: str = "") -> None:
        """Note unknown keys, except null values, which tables fill in for absent keys."""
        extra = [k for k, value in record.items() if k not in known and value is not None]
        self.ignored += [prefix + key for key in extra]

    def column(self, key: str) -> str:
        """Return the column of a key of the format."""
        return self.columns.get(key, key)

    def missing(self, record: Mapping[str, Any], key: str, field: str, wanted: str) -> None:
        close = difflib.get_close_matches(key, record, n=1)
        hint = f'rename "{close[0]}" to "{key}"' if close else f'add "{key}"'
        self.fault(field, f"expected {wanted}; it is missing", hint)

    def has(self, key: str, wanted: str) -> bool:
        """Return True if a required key of the format is in the record; add a fault if not."""
        column = self.column(key)
        if column in self.record:
            return True
        if column == key:
            self.missing(self.record, key, key, wanted)
        else:
            self.faults.append(missing_column(self.where, self.record, key, column))
        return False

    def text(self, record: Mapping[str, Any], key: str, field: str) -> str:
        """Return the string under a required key."""
        if key not in record:
            self.missing(record, key, field, "a string")
            return ""
        value = record[key]
        if not isinstance(value, str):
            several = isinstance(value, list)
            hint = "join the parts into one string" if several else "write a string in quotes"
            self.fault(field, f"expected a string; found {found(value)}", hint)
            return ""
        return value

    def content(self, item: Mapping[str, Any], key: str, field: str) -> str:
        """Return the content of a message: a string, or OpenAI's list of text parts."""
        if not isinstance(item.get(key), list):
            return self.text(item, key, field)
        texts = []
        for index, part in enumerate(item[key]):
            place = f"{field}[{index}]"
            if not isinstance(part, dict):
                self.fault(place, f"expected an object; found {found(part)}")
            elif part.get("type") != "text":
                seen = found(part["type"]) if "type" in part else "nothing"
                hint = "leave out rows with pictures, sound or files"
                self.fault(f"{place}.type", f"expected text; found {seen}", hint)
            else:
                texts.append(self.text(part, "text", f"{place}.text"))
        return "".join(texts)

    def required(self, key: str) -> str:
        """Return the string under a required key of the format."""
        column = self.column(key)
        return self.text(self.record, column, column) if self.has(key, "a string") else ""

    def answer(self, key: str) -> str | None:
        """Return the answer under a key of the format, or None if an open record has none."""
        if self.open and self.record.get(self.column(key)) is None:
            return None
        text = self.required(key)
        self.empty |= not text.strip()
        return text

    def optional(self, key: str) -> str:
        """Return the string under a key of the format; empty if absent or null."""
        column = self.column(key)
        absent = self.record.get(column) is None
        return "" if absent else self.text(self.record, column, column)

    def label(self, key: str) -> Label | None:
        """Return the text or whole number under a key of `Meta`; other values are ignored."""
        column = self.column(key)
        value = self.record.get(column)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return value
        if value is not None and self.open and key == "id":  # an answer is found by its id
            self.fault(column, f"expected a string or a whole number; found {found(value)}")
        elif value is not None:
            self.ignored.append(column)
        return None

    def items(self, key: str) -> list[Any]:
        """Return the list under a required key of the format, which must not be empty."""
        if not self.has(key, "a list"):
            return []
        column = self.column(key)
        value = self.record[column]
        if not isinstance(value, list):
            self.fault(column, f"expected a list; found {found(value)}")
            return []
        if not value:
            self.fault(column, "expected at least one message; the list is empty", "remove the row")
        return value


def missing_column(where: str, record: Mapping[str, Any], key: str, column: str) -> Fault:
    """Return the fault of a record without a column that `data.columns` names."""
    problem = f"expected the column that data.columns takes for {key}; it is missing"
    hint = meant(column, record) or f"the columns are {some(record)}"
    return Fault(f"{where}: {column}", problem, hint)


# --- formats ---


def _messages(reading: _Reading) -> Content:
    return _turns(reading, "messages", OPENAI, _open_system(reading))


def _sharegpt(reading: _Reading) -> Content:
    system = _system(reading.optional("system"))
    return _turns(reading, "conversations", reading.turns or SHAREGPT, system)


def _prompt(reading: _Reading) -> Content:
    asked = _exchange(reading.required("prompt"), reading.answer("completion"))
    return _open_system(reading) + asked


def _alpaca(reading: _Reading) -> Content:
    messages = _system(reading.optional("system"))
    column = reading.column("history")
    history = reading.record.get(column)
    if history is not None and not isinstance(history, list):
        reading.fault(column, f"expected a list of pairs; found {found(history)}")
        history = None
    for index, pair in enumerate(history or ()):
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair):
            question, answer = pair
            reading.empty |= not answer.strip()
            messages += _exchange(question, answer)
        else:
            reading.fault(f"{column}[{index}]", "expected a pair of strings, question and answer")
    asked = [part for part in (reading.required("instruction"), reading.optional("input")) if part]
    return messages + _exchange("\n".join(asked), reading.answer("output"))


def _text(reading: _Reading) -> Content:
    return reading.answer("text") or ""


FORMATS: Mapping[Format, Callable[[_Reading], Content]] = {
    "messages": _messages,
    "prompt": _prompt,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "text": _text,
}


def _exchange(question: str, answer: str | None) -> list[Message]:
    asked = [{"role": "user", "content": question}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def _system(text: str) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []


def _open_system(reading: _Reading) -> list[Message]:
    """Return the system message that an open record may have in formats without such a key.

    An empty one counts: it keeps the default of a chat template out.
    """
    if not reading.open or reading.record.get("system") is None:
        return []
    return [{"role": "system", "content": reading.text(reading.record, "system", "system")}]


def _tools(reading: _Reading) -> tuple[dict[str, Any], ...]:
    """Return the tools that the assistant can call, under either name."""
    given = [c for c in map(reading.column, TOOLS) if reading.record.get(c) not in (None, "", [])]
    if len(given) > 1:
        reading.fault(given[1], f"expected {' or '.join(given)}; found both", "keep one of the two")
        return ()
    if not given:
        return ()
    where = f"{reading.where}: {given[0]}"
    return calls.tools(reading.own(reading.record[given[0]]), where, reading.faults.append)


# --- conversations ---


def _turns(reading: _Reading, key: str, turns: Turns, system: list[Message]) -> list[Message]:
    """Return the messages of a list, under our names for keys and roles.

    Args:
        reading: the record.
        key: key of the list.
        turns: its keys and roles.
        system: the system message from another key of the record, if any.
    """
    messages = list(system)
    roles_known = True
    items, column = reading.items(key), reading.column(key)
    for index, item in enumerate(items):
        field = f"{column}[{index}]"
        if not isinstance(item, dict):
            reading.fault(field, f"expected an object; found {found(item)}")
            roles_known = False
            continue
        role = _role(item, reading, turns, f"{field}.{turns.role_key}")
        if role == "tool" and roles_known and not _is_called(messages):
            problem = "expected a message that calls a tool before its result"
            reading.fault(f"{field}.{turns.role_key}", problem, "add the call, or remove the row")
        roles_known &= role is not None
        message, known = _message(item, role, reading, turns, field)
        if role == "system" and reading.open and messages == system != []:
            problem = f"expected one system message; found another in {column}"
            reading.fault("system", problem, "keep one of the two")
        elif role == "system" and messages:
            problem = "expected the system message first, and only one"
            hint = "merge it into the first message"
            reading.fault(f"{field}.{turns.role_key}", problem, hint)
        if message["role"] == "assistant":
            _weigh(item, message, reading, field, len(messages))
        reading.ignore(item, known, f"{column}[].")
        messages.append(message)
    answered = reading.open or any(m["role"] == "assistant" for m in messages)
    if items and roles_known and not answered:
        seen = ", ".join(m["role"] for m in messages)
        problem = f"expected at least one assistant message; found {seen}"
        hint = "add the answer to train on, or remove the row"
        reading.fault(column, problem, hint)
    return messages


def _message(
    item: Mapping[str, Any], role: str | None, reading: _Reading, turns: Turns, field: str
) -> tuple[Message, tuple[str, ...]]:
    """Return a message under our names, and the keys that were read."""
    text = f"{field}.{turns.text_key}"
    known = (turns.role_key, turns.text_key, *LINKS.get(role or "", ()))
    if role == CALL:
        before = len(reading.faults)
        called = _calls(item, (turns.text_key,), reading, field)
        if not called and len(reading.faults) == before:
            reading.fault(text, "expected the call of a tool; found nothing", calls.CALL_HINT)
        message = {"role": "assistant", "content": "", "tool_calls": called}
        return message, (*known, *LINKS["assistant"])
    if role != "assistant":
        return {"role": role or "", "content": reading.content(item, turns.text_key, text)}, known
    given = [key for key in CALLS if item.get(key)]
    called = _calls(item, given, reading, field)
    silent = bool(given) and item.get(turns.text_key) is None
    message = {
        "role": "assistant",
        "content": "" if silent else reading.content(item, turns.text_key, text),
    }
    thought = next((key for key in REASONING if item.get(key) is not None), REASONING[0])
    if item.get(thought) is not None:
        reasoning = reading.text(item, thought, f"{field}.{thought}")
        if reasoning.strip() and split(message).reasoning:
            problem = "expected the reasoning once; found it in the text as well"
            reading.fault(f"{field}.{thought}", problem, "keep one of the two")
        if reasoning.strip():
            message["reasoning_content"] = reasoning
    if given:
        message["tool_calls"] = called
    return message, (*known, thought, *CALLS)


def _calls(
    item: Mapping[str, Any], keys: Iterable[str], reading: _Reading, field: str
) -> list[dict[str, Any]]:
    """Return the calls of a message, under the one of these keys that it has."""
    first, *others = [*keys, None]
    if first is None:
        return []
    if others[:-1]:
        problem = f"expected {' or '.join(CALLS)}; found both"
        reading.fault(f"{field}.{others[0]}", problem, "keep one of the two")
    where = f"{reading.where}: {field}.{first}"
    return calls.calls(reading.own(item.get(first)), where, reading.faults.append)


def _weigh(
    item: Mapping[str, Any], message: Message, reading: _Reading, field: str, index: int
) -> None:
    """Read the weight of an assistant message, and note one to train on that is empty."""
    weight = item.get("weight")
    if weight not in (None, 0, 1):
        problem = f"expected 0 or 1; found {found(weight)}"
        reading.fault(f"{field}.weight", problem, "0 leaves the message out of training")
    if weight == 0:
        reading.untrained.add(index)
    elif not message.get("tool_calls"):
        reading.empty |= not split(message).words.strip()


def _is_called(messages: list[Message]) -> bool:
    """Return True if a tool result may follow: after a call, also one in text, or a result."""
    last = messages[-1] if messages else {"role": "", "content": ""}
    return last["role"] == "tool" or "tool_calls" in last or "<tool_call>" in last["content"]


def _role(item: Mapping[str, Any], reading: _Reading, turns: Turns, field: str) -> str | None:
    """Return our name of the role, or None if it is not one of theirs."""
    role = item.get(turns.role_key)
    if isinstance(role, str) and role in turns.roles:
        return turns.roles[role]
    *others, last = turns.main
    seen = found(role) if turns.role_key in item else "nothing"
    problem = f"expected {', '.join(others)} or {last}; found {seen}"
    reading.fault(field, problem, _role_hint(role, turns))
    return None


def _role_hint(role: object, turns: Turns) -> str:
    """Return the hint for an unknown role.

    >>> _role_hint("bot", OPENAI), _role_hint("Users", OPENAI), _role_hint("bot", SHAREGPT)
    ('change "bot" to "assistant"', 'change "Users" to "user"', 'change "bot" to "gpt"')
    """
    if not isinstance(role, str):
        return "name the role"
    same = next((names for names in SYNONYMS if role.lower() in names), set())
    near = difflib.get_close_matches(role.lower(), turns.roles, n=1)
    meant = [name for name in turns.main if name in same]
    if "function_call" in same and not meant:
        return 'write the call into "tool_calls" of an assistant message'
    return next((f'change "{role}" to "{name}"' for name in (*meant, *near)), "name the role")


def _notes(content: Content, tools: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """Return the notes about a conversation: allowed but unusual.

    `roles_not_alternating`: user and assistant do not alternate, with tool calls, their results and
    the answer to them as one turn. `ends_without_answer`: messages after the last assistant message
    change no loss. `calls_unlisted_function`: a function is called that is not among the tools of
    the record.
    """
    if isinstance(content, str):
        return ()
    roles = [message["role"] for message in content if message["role"] != "system"]
    after = zip(["", *roles[:-1]], roles, strict=True)
    own = [role for last, role in after if role == "user" or "tool" not in (last, role)]
    turns = (["user", "assistant"] * len(own))[: len(own)]
    called = [call for message in content for call in message.get("tool_calls", ())]
    notes = [
        ("roles_not_alternating", own != turns),
        ("ends_without_answer", roles[-1:] != ["assistant"]),
        ("calls_unlisted_function", bool(called) and calls.has_unlisted_call(called, tools)),
    ]
    return tuple(name for name, holds in notes if holds)


# --- records ---

AS_THEY_ARE: Mapping[str, str] = MappingProxyType({})
"""Columns of a file whose keys are those of its format."""


def detect(record: Mapping[str, Any]) -> Format | None:
    """Return the format whose keys a record has.

    >>> detect({"instruction": "Add.", "output": "2"}), detect({"question": "?"})
    ('alpaca', None)
    """
    fits = (name for name, keys in KEYS.items() if all(k in record for k in keys.required))
    return next(fits, None)


def examples(
    records: Iterable[Record | Faults],
    format: FormatName = "auto",
    *,
    columns: Mapping[str, str] = AS_THEY_ARE,
    turns: Turns | None = None,
    settled: str = "data.format",
) -> Iterator[Example | Faults]:
    """Yield each record as an example, or its faults.

    Args:
        records: records of one source; faults among them are passed on.
        format: format of all records; `auto` takes the format of the first record that has one.
        columns: the column for each key of the format that has another name in the records.
        turns: keys and roles of the sharegpt format, if they differ from the usual.
        settled: the setting that names the format, if it is not `auto`.
    """
    name: Format | None = None if format == "auto" else format
    for record in records:
        if isinstance(record, tuple):
            yield record
            continue
        own = detect(record.value)
        if name is None:
            if own is None:
                yield (_unknown(record),)
                continue
            name, settled = own, record.where
        fits = bool(columns) or all(key in record.value for key in KEYS[name].required)
        if own not in (None, name) and not fits:
            problem = f"expected the {name} format, as {settled} has it; found the {own} format"
            one, other = "keep one format in a file", f"set data.format to {own}"
            yield (Fault(record.where, problem, one if format == "auto" else other),)
            continue
        yield read_record(record, name, columns=columns, turns=turns)


def read_record(
    record: Record,
    name: Format,
    *,
    columns: Mapping[str, str] = AS_THEY_ARE,
    turns: Turns | None = None,
    open: bool = False,
) -> Example | Faults:
    """Read one record as an example, or return its faults.

    Args:
        record: the record.
        name: its format.
        columns: see `examples`.
        turns: see `examples`.
        open: the record is to be answered: its answer may be missing, and it may have a `system`
            message whatever its format.
    """
    reading = _Reading(record, columns, turns, open=open)
    keys = KEYS[name]
    known = {columns.get(key, key) for key in (*keys.required, *keys.optional)}
    reading.ignore(record.value, known | {"system"} if open else known)
    meta = Meta(id=reading.label("id"), category=reading.label("category"))
    content = FORMATS[name](reading)
    tools = () if isinstance(content, str) else _tools(reading)
    if reading.faults:
        return tuple(reading.faults)
    return Example(
        where=record.where,
        meta=meta,
        format=name,
        content=content,
        tools=tools,
        untrained=frozenset(reading.untrained),
        empty=reading.empty,
        ignored=tuple(dict.fromkeys(reading.ignored)),
        notes=_notes(content, tools),
    )


def _unknown(record: Record) -> Fault:
    wanted = "; ".join(" and ".join(keys.required) for keys in KEYS.values())
    keys = ", ".join(record.value) or "none"
    problem = f"expected the keys of one format ({wanted}); found {keys}"
    if {"role", "content"} <= record.value.keys():
        return Fault(record.where, problem, 'put the messages of a row into {"messages": [...]}')
    known = {key for each in KEYS.values() for key in each.required}
    close = {key: difflib.get_close_matches(key, known, n=1) for key in record.value}
    renamed = [
        f'"{key}" to "{near[0]}"' for key, near in close.items() if near and key not in known
    ]
    hint = f"rename {' and '.join(renamed)}" if renamed else "rename the keys"
    return Fault(record.where, problem, f"{hint}, or name the columns in data.columns")
