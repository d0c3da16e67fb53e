"""Tools, and calls of them, as other programs write them: brought into OpenAI's form.

A tool is `{"type": "function", "function": {"name": ..., ...}}`. A call is the same with the
`name` and the `arguments` of the function, which are an object here, though OpenAI writes them as
JSON text. Ids are left out: no chat template of Qwen writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from qwen_local.datasets.faults import found
from qwen_local.datasets.json_text import malformed, unusable_text, whole
from qwen_local.errors import Fault

Note = Callable[[Fault], None]
"""Takes a fault."""

TOOL_HINT = 'write {"type": "function", "function": {"name": ..., "parameters": {...}}}'
CALL_HINT = 'write {"name": ..., "arguments": {...}}'
BROKEN = object()
"""In place of a value that cannot be read, once that is told."""


def tools(value: object, where: str, note: Note) -> tuple[dict[str, Any], ...]:
    """The tools of a record: a list, or the JSON text of one.

    Args:
        value: of the key; null, and a text without anything in it, are no tools.
        where: the place of the key.
        note: is told every fault.
    """
    value = _parsed(value, where, note)
    if value is None or value is BROKEN:
        return ()
    if not isinstance(value, list):
        problem = f"expected a list of tools, or the JSON text of one; found {found(value)}"
        note(Fault(where, problem, f"{TOOL_HINT} in a list"))
        return ()
    tools = (_tool(item, f"{where}[{index}]", note) for index, item in enumerate(value))
    return tuple(tool for tool in tools if tool is not None)


def _tool(item: object, where: str, note: Note) -> dict[str, Any] | None:
    item = _parsed(item, where, note)
    if item is BROKEN:
        return None
    function, where = _function(item, where, note, TOOL_HINT)
    if function is None or _name(function, where, note, TOOL_HINT) is None:
        return None
    return {"type": "function", "function": function}


def calls(value: object, where: str, note: Note) -> list[dict[str, Any]]:
    """The calls of an assistant message: a call, a list of them, or the JSON text of either."""
    value = _parsed(value, where, note)
    if value is None or value is BROKEN:
        return []
    if not isinstance(value, list):
        return [call for call in [_call(value, where, note)] if call is not None]
    calls = (_call(item, f"{where}[{index}]", note) for index, item in enumerate(value))
    return [call for call in calls if call is not None]


def _call(item: object, where: str, note: Note) -> dict[str, Any] | None:
    function, where = _function(item, where, note, CALL_HINT)
    if function is None:
        return None
    name = _name(function, where, note, CALL_HINT)
    where = f"{where}.arguments"
    if "arguments" not in function:
        note(Fault(where, "expected an object; it is missing", CALL_HINT))
        return None
    arguments = _parsed(function["arguments"], where, note)
    if arguments is None:  # a function without parameters
        arguments = {}
    elif not isinstance(arguments, dict):
        if arguments is not BROKEN:
            problem = f"expected an object, or the JSON text of one; found {found(arguments)}"
            note(Fault(where, problem, CALL_HINT))
        return None
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def unlisted(calls: Iterable[dict[str, Any]], tools: Iterable[dict[str, Any]]) -> bool:
    """Whether a function is called that is not among the tools."""
    names = {tool["function"]["name"] for tool in tools}
    return any(call["function"]["name"] not in names for call in calls)


def own(value: Any) -> Any:
    """A value of a table without the nulls that stand for keys of other rows.

    >>> own({"name": "now", "parameters": {"city": None, "zones": ["CET", None]}})
    {'name': 'now', 'parameters': {'zones': ['CET', None]}}
    """
    if isinstance(value, dict):
        return {key: own(item) for key, item in value.items() if item is not None}
    return [own(item) for item in value] if isinstance(value, list) else value


def _function(item: object, where: str, note: Note, hint: str) -> tuple[dict[str, Any] | None, str]:
    """The function that a tool or a call is about, bare or wrapped, and its place."""
    if not isinstance(item, dict):
        note(Fault(where, f"expected an object; found {found(item)}", hint))
        return None, where
    if "function" not in item:
        return item, where
    if item.get("type") not in (None, "function"):
        note(Fault(f"{where}.type", f"expected function; found {found(item['type'])}", hint))
        return None, where
    function, where = item["function"], f"{where}.function"
    if not isinstance(function, dict):
        note(Fault(where, f"expected an object; found {found(function)}", hint))
        return None, where
    return function, where


def _name(function: dict[str, Any], where: str, note: Note, hint: str) -> str | None:
    name = function.get("name")
    if isinstance(name, str) and name:
        return name
    seen = found(name) if "name" in function else "nothing"
    note(Fault(f"{where}.name", f"expected the name of a function; found {seen}", hint))
    return None


def _parsed(value: object, where: str, note: Note) -> object:
    """A value, or what it says where it is JSON text; a text without anything in it is None."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        parsed, noted = whole(value)
    except (ValueError, RecursionError) as error:
        note(malformed(where, error, "write the value itself, or JSON as a text"))
        return BROKEN
    faults = [Fault(where, problem, hint) for problem, hint in noted]
    for field, problem, hint in unusable_text(parsed):
        inside = f".{field}" if field and not field.startswith("[") else field
        faults.append(Fault(where + inside, problem, hint))
    for fault in faults:
        note(fault)
    return BROKEN if faults else parsed
