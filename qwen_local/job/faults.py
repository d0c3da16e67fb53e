"""Convert pydantic validation errors to our messages, each with a hint.

Every field of the job has a description that is a noun phrase, so that the hint can be built here:
"rank: rank of the LoRA matrices; for example 16".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel

from qwen_local.job.reader import show

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

EXPECTED = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_pattern_mismatch": "text without control characters",
    "string_type": "text",
    "string_unicode": "text that is valid Unicode",
}
BOUNDS = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must not be empty",
}
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def explain(key: str, field: FieldInfo, errors: Sequence[ErrorDetails]) -> tuple[str, str]:
    """Return (problem, hint) for one value.

    Args:
        key: name of the field, without its section.
        field: definition of the field.
        errors: errors of this one value; a union type has one error per member.
    """
    value = errors[0]["input"]
    for error in errors:
        context = error.get("ctx", {})
        if error["type"] == "job":  # raised by job/schema.py, which words its own messages
            return error["msg"], context.get("hint") or _about(key, field)
        if error["type"] in BOUNDS:  # the type is right, the value is out of range
            plain = {name: f"{limit:.12g}" for name, limit in context.items()}
            bound = BOUNDS[error["type"]].format(**plain)
            return f"{bound}; found {show(value)}", _about(key, field)
    names = [name for error in errors for name in _names(error)]
    kinds = [EXPECTED[error["type"]] for error in errors if error["type"] in EXPECTED]
    null = ["null"] if type(None) in get_args(field.annotation) else []
    *most, last = [*names, *kinds, *null]
    expected = f"{', '.join(most)} or {last}" if most else last
    return f"expected {expected}; found {show(value)}", _hint(key, field, value, names, kinds)


def _names(error: ErrorDetails) -> list[str]:
    """Return the allowed words of a literal, from pydantic's `'drop', 'cut' or 'error'`."""
    if error["type"] != "literal_error":
        return []
    return re.findall(r"'([^']*)'", error["ctx"]["expected"])


def _hint(
    key: str, field: FieldInfo, value: object, names: Sequence[str], kinds: Sequence[str]
) -> str:
    if isinstance(value, str):
        if near := difflib.get_close_matches(value.lower(), names, n=1):
            return f"did you mean {near[0]}?"
        if kinds and "number" in kinds[0] and NUMBER.fullmatch(value) and len(value) < 30:
            return f"write {value} without quotes"
    if isinstance(value, float) and value.is_integer() and "a whole number" in kinds:
        return f"write {value:.0f}"
    return _about(key, field)


def _about(key: str, field: FieldInfo) -> str:
    example = field.examples[0] if field.examples else field.get_default()
    shown = example if isinstance(example, str) else show(example)
    if isinstance(example, BaseModel):
        shown = "{" + ", ".join(f"{name}: {show(value)}" for name, value in example) + "}"
    return f"{key}: {field.description}; for example {shown}"
