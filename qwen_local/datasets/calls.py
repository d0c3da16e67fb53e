"""Convert tools and tool calls, as other programs write them, to OpenAI's form.

A tool is `{"type": "function", "function": {"name": ..., ...}}`. A call has the same form with the
function's `name` and `arguments`. The arguments are an object here, although OpenAI writes them as
JSON text. Ids are left out, because no Qwen chat template uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from qwen_local.datasets.faults import found
from qwen_local.datasets.json_text import json_fault, parse_json, unusable_text
from qwen_local.errors import Fault

Note = Callable[[Fault], None]
"""Receives each fault."""

TOOL_HINT = 'write {"type": "function", "function": {"name": ..., "parameters": {...}}}'
CALL_HINT = 'write {"name": ..., "arguments": {...}}'
INVALID = object()
"""Stands for a value that cannot be parsed and whose fault is already reported."""


def tools(value: object, where: str, note: Note) -> tuple[dict[str, Any], ...]:
    """Return the tools of a record from a list, or from the JSON text of a list.

    Args:
        value: value of the key; null and empty text mean no tools.
        where: place of the key.
        note: receives every fault.
    """
    value = _parsed(value, where, note)
    if value is None or value is INVALID:
        return ()
    if not isinstance(value, list):
        problem = f"expected a list of tools, or the JSON text of one; found {found(value)}"
        note(Fault(where, problem, f"{TOOL_HINT} in a list"))
        return ()
    tools = (_tool(item, f"{where}[{index}]", note) for index, item in enumerate(value))
    return tuple(tool for tool in tools if tool is not None)


def _tool(item: object, where: str, note: Note) -> dict[str, Any] | None:
    item = _parsed(item, where, note)
    if item is INVALID:
        return None
    function, where = _function(item, where, note, TOOL_HINT)
    if function is None or _name(function, where, note, TOOL_HINT) is None:
        return None
    return {"type": "function", "function": function}


def calls(value: object, where: str, note: Note) -> list[dict[str, Any]]:
    """Return the calls of an assistant message from a call, a list of calls, or JSON text."""
    value = _parsed(value, where, note)
    if value is None or value is INVALID:
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
    if arguments is None:  # the function has no parameters
        arguments = {}
    elif not isinstance(arguments, dict):
        if arguments is not INVALID:
            problem = f"expected an object, or the JSON text of one; found {found(arguments)}"
            note(Fault(where, problem, CALL_HINT))
        return None
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def has_unlisted_call(calls: Iterable[dict[str, Any]], tools: Iterable[dict[str, Any]]) -> bool:
    """Return True if a call names a function that is not among the tools."""
    names = {tool["function"]["name"] for tool in tools}
    return any(call["function"]["name"] not in names for call in calls)


def without_nulls(value: Any) -> Any:
    """Remove the nulls that tables add for keys of other rows.

    >>> without_nulls({"name": "now", "parameters": {"city": None, "zones": ["CET", None]}})
    {'name': 'now', 'parameters': {'zones': ['CET', None]}}
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _function(item: object, where: str, note: Note, hint: str) -> tuple[dict[str, Any] | None, str]:
    """Return the function object of a tool or call, bare or wrapped, and its place."""
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
    """Parse the value if it is JSON text; empty text becomes None."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        parsed, problems = parse_json(value)
    except (ValueError, RecursionError) as error:
        note(json_fault(where, error, "write the value itself, or JSON as a text"))
        return INVALID
    faults = [Fault(where, problem, hint) for problem, hint in problems]
    for field, problem, hint in unusable_text(parsed):
        inside = f".{field}" if field and not field.startswith("[") else field
        faults.append(Fault(where + inside, problem, hint))
    for fault in faults:
        note(fault)
    return INVALID if faults else parsed
