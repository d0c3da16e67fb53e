"""Records to conversations or plain text: the five formats that we read, and their rules."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen_local.datasets.faults import found
from qwen_local.datasets.files import Faults, Record
from qwen_local.errors import Fault

FormatName = Literal["auto", "messages", "prompt", "alpaca", "sharegpt", "text"]

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
OTHER_NAMES = {
    "ai": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "developer": "system",
    "human": "user",
}
"""Roles as other tools write them, for the hint."""
TOOL_ROLES = {"function", "function_call", "observation", "tool", "tool_call", "tool_response"}

Content = list[dict[str, str]] | str
"""A conversation, as messages, or plain text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One record that keeps the rules of its format."""

    where: str
    """Its place, such as `train.jsonl:17`."""
    format: str
    content: Content
    says_nothing: bool
    """Whether an answer, or the plain text, is empty or white space alone: learned, it would teach
    silence. Published data sets have such rows (two of CodeAlpaca's 2k file), so it is no fault."""
    ignored: tuple[str, ...]
    """Keys of the record that mean nothing here."""
    notes: tuple[str, ...]
    """What is allowed but worth a word: see `_turn_notes`."""


class _Reading:
    """One record being read: what is wrong with it and what of it is ignored."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.faults: list[Fault] = []
        self.ignored: list[str] = []
        self.says_nothing = False

    def fault(self, field: str, problem: str, hint: str | None = None) -> None:
        self.faults.append(Fault(f"{self.where}: {field}", problem, hint))

    def ignore(self, record: Mapping[str, Any], known: Iterable[str], prefix: str = "") -> None:
        """Notes the keys that are not known. Tables fill absent ones with null: no matter."""
        extra = [k for k, value in record.items() if k not in known and value is not None]
        self.ignored += [prefix + key for key in extra]

    def missing(self, record: Mapping[str, Any], key: str, field: str, wanted: str) -> None:
        close = difflib.get_close_matches(key, record, n=1)
        hint = f'rename "{close[0]}" to "{key}"' if close else f'add "{key}"'
        self.fault(field, f"expected {wanted}; it is missing", hint)

    def text(self, record: Mapping[str, Any], key: str, field: str) -> str:
        """The string under this key, which must be there."""
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

    def answer(self, record: Mapping[str, Any], key: str, field: str) -> str:
        """The string under this key, which is to be learned."""
        text = self.text(record, key, field)
        self.says_nothing |= not text.strip()
        return text

    def optional(self, record: Mapping[str, Any], key: str) -> str:
        """The string under this key, or the empty string where it is absent or null."""
        return "" if record.get(key) is None else self.text(record, key, key)

    def items(self, record: Mapping[str, Any], key: str) -> list[Any]:
        """The list under this key, which must hold something."""
        if key not in record:
            self.missing(record, key, key, "a list")
            return []
        value = record[key]
        if not isinstance(value, list):
            self.fault(key, f"expected a list; found {found(value)}")
            return []
        if not value:
            self.fault(key, "expected at least one message; the list is empty", "remove the row")
        return value


# --- formats ---


def _messages(record: Mapping[str, Any], reading: _Reading) -> Content:
    reading.ignore(record, ("messages",))
    return _turns(record, reading, "messages", "role", "content", ROLES, system_given=False)


def _sharegpt(record: Mapping[str, Any], reading: _Reading) -> Content:
    reading.ignore(record, ("conversations", "system"))
    system = _system(reading.optional(record, "system"))
    return system + _turns(
        record,
        reading,
        "conversations",
        "from",
        "value",
        SHAREGPT_ROLES,
        system_given=bool(system),
    )


def _prompt(record: Mapping[str, Any], reading: _Reading) -> Content:
    reading.ignore(record, ("prompt", "completion"))
    prompt = reading.text(record, "prompt", "prompt")
    return _exchange(prompt, reading.answer(record, "completion", "completion"))


def _alpaca(record: Mapping[str, Any], reading: _Reading) -> Content:
    reading.ignore(record, ("instruction", "input", "output", "system", "history"))
    messages = _system(reading.optional(record, "system"))
    history = record.get("history")
    if history is not None and not isinstance(history, list):
        reading.fault("history", f"expected a list of pairs; found {found(history)}")
        history = None
    for index, pair in enumerate(history or ()):
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair):
            question, said = pair
            reading.says_nothing |= not said.strip()
            messages += _exchange(question, said)
        else:
            reading.fault(f"history[{index}]", "expected a pair of strings, question and answer")
    instruction = reading.text(record, "instruction", "instruction")
    asked = [part for part in (instruction, reading.optional(record, "input")) if part]
    return messages + _exchange("\n".join(asked), reading.answer(record, "output", "output"))


def _text(record: Mapping[str, Any], reading: _Reading) -> Content:
    reading.ignore(record, ("text",))
    return reading.answer(record, "text", "text")


@dataclass(frozen=True, slots=True)
class _Format:
    required: tuple[str, ...]
    convert: Callable[[Mapping[str, Any], _Reading], Content]


FORMATS = {
    "messages": _Format(("messages",), _messages),
    "prompt": _Format(("prompt", "completion"), _prompt),
    "alpaca": _Format(("instruction", "output"), _alpaca),
    "sharegpt": _Format(("conversations",), _sharegpt),
    "text": _Format(("text",), _text),
}


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _system(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": text}] if text else []


# --- conversations ---


def _turns(
    record: Mapping[str, Any],
    reading: _Reading,
    list_key: str,
    role_key: str,
    text_key: str,
    roles: Mapping[str, str],
    *,
    system_given: bool,
) -> list[dict[str, str]]:
    """The messages of a list, under our names for keys and roles."""
    messages: list[dict[str, str]] = []
    roles_known = True
    items = reading.items(record, list_key)
    for index, item in enumerate(items):
        field = f"{list_key}[{index}]"
        if not isinstance(item, dict):
            reading.fault(field, f"expected an object; found {found(item)}")
            roles_known = False
            continue
        role = _role(item, reading, role_key, f"{field}.{role_key}", roles)
        roles_known &= role is not None
        learned = role == "assistant"
        take = reading.answer if learned else reading.text
        message = {"role": role or "", "content": take(item, text_key, f"{field}.{text_key}")}
        known = [role_key, text_key]
        if learned:
            known.append("reasoning_content")
            if item.get("reasoning_content") is not None:
                reasoning = f"{field}.reasoning_content"
                message["reasoning_content"] = reading.text(item, "reasoning_content", reasoning)
        if role == "system" and (index > 0 or system_given):
            problem = "expected the system message first, and only one"
            reading.fault(f"{field}.{role_key}", problem, "merge it into the first message")
        reading.ignore(item, known, f"{list_key}[].")
        messages.append(message)
    if items and roles_known and not any(m["role"] == "assistant" for m in messages):
        seen = ", ".join(m["role"] for m in messages)
        problem = f"expected at least one assistant message; found {seen}"
        reading.fault(list_key, problem, "add the answer that is to be learned, or remove the row")
    return messages


def _role(
    item: Mapping[str, Any], reading: _Reading, key: str, field: str, roles: Mapping[str, str]
) -> str | None:
    """Our name of the role, or None where it is not one of `roles`."""
    role = item.get(key)
    if isinstance(role, str) and role in roles:
        return roles[role]
    *others, last = roles
    seen = found(role) if key in item else "nothing"
    reading.fault(field, f"expected {', '.join(others)} or {last}; found {seen}", _role_hint(role))
    return None


def _role_hint(role: object) -> str:
    """How to mend a role.

    >>> _role_hint("bot"), _role_hint("Users")
    ('change "bot" to "assistant"', 'change "Users" to "user"')
    """
    if not isinstance(role, str):
        return "say who speaks"
    if role in TOOL_ROLES:
        return "leave out conversations that call tools, or retell the result in a user message"
    close = difflib.get_close_matches(role.lower(), ROLES, n=1)
    meant = OTHER_NAMES.get(role.lower()) or (close[0] if close else None)
    return f'change "{role}" to "{meant}"' if meant else "say who speaks"


def _turn_notes(content: Content) -> tuple[str, ...]:
    """What is allowed in a conversation but worth a word.

    `roles_not_alternating`: user and assistant do not take turns. `ends_without_answer`: what
    follows the last assistant message teaches nothing.
    """
    if isinstance(content, str):
        return ()
    roles = [message["role"] for message in content if message["role"] != "system"]
    turns = (["user", "assistant"] * len(roles))[: len(roles)]
    notes = [
        ("roles_not_alternating", roles != turns),
        ("ends_without_answer", roles[-1] == "user"),
    ]
    return tuple(name for name, holds in notes if holds)


# --- records ---


def detect(record: Mapping[str, Any]) -> str | None:
    """The format whose keys a record has.

    >>> detect({"instruction": "Add.", "output": "2"}), detect({"question": "?"})
    ('alpaca', None)
    """
    fits = (name for name, form in FORMATS.items() if all(k in record for k in form.required))
    return next(fits, None)


def examples(
    records: Iterable[Record | Faults], format: FormatName = "auto"
) -> Iterator[Example | Faults]:
    """Every record in its format, or what is wrong with it.

    Args:
        records: of one source; the faults among them are handed on.
        format: of all records; `auto` takes the format of the first record that has one.
    """
    name: str | None = None if format == "auto" else format
    settled = "data.format"  # who says so
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
        if own not in (None, name) and not _fits(record.value, name):
            problem = f"expected the {name} format, as {settled} has it; found the {own} format"
            one, other = "keep one format in a file", f"set data.format to {own}"
            yield (Fault(record.where, problem, one if format == "auto" else other),)
            continue
        yield _read(record, name)


def _fits(record: Mapping[str, Any], name: str) -> bool:
    return all(key in record for key in FORMATS[name].required)


def _read(record: Record, name: str) -> Example | Faults:
    reading = _Reading(record.where)
    content = FORMATS[name].convert(record.value, reading)
    if reading.faults:
        return tuple(reading.faults)
    return Example(
        where=record.where,
        format=name,
        content=content,
        says_nothing=reading.says_nothing,
        ignored=tuple(dict.fromkeys(reading.ignored)),
        notes=_turn_notes(content),
    )


def _unknown(record: Record) -> Fault:
    wanted = "; ".join(" and ".join(form.required) for form in FORMATS.values())
    keys = ", ".join(record.value) or "none"
    problem = f"expected the keys of one format ({wanted}); found {keys}"
    if {"role", "content"} <= record.value.keys():
        return Fault(record.where, problem, 'put the messages of a row into {"messages": [...]}')
    return Fault(record.where, problem, "rename the keys")
