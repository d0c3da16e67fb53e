"""Keys of each format, and the mapping from columns to keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from qwen_local.datasets.faults import meant, quoted, some
from qwen_local.errors import DatasetError

Format = Literal["messages", "prompt", "alpaca", "sharegpt", "text"]
FormatName = Literal["auto", Format]


class Keys(NamedTuple):
    """Required and optional keys of a record."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


TOOLS = ("tools", "functions")
"""Keys for the tools that the assistant may call; `functions` is OpenAI's older name."""

META = ("id", "category")
"""Keys of any record that describe it: its name, and the group that it belongs to."""

KEYS: Mapping[Format, Keys] = {
    "messages": Keys(("messages",), (*TOOLS, *META)),
    "prompt": Keys(("prompt", "completion"), (*TOOLS, *META)),
    "alpaca": Keys(("instruction", "output"), ("input", "system", "history", *TOOLS, *META)),
    "sharegpt": Keys(("conversations",), ("system", *TOOLS, *META)),
    "text": Keys(("text",), META),
}
"""Keys of each format, in the order in which format detection tries them."""


def resolve_format(columns: Mapping[str, str], format: FormatName) -> FormatName:
    """Return the format of records whose keys have other column names.

    >>> resolve_format({"completion": "answer"}, "auto")
    'prompt'

    Args:
        columns: column name for each renamed key of the format.
        format: format that the user chose; `auto` derives it from the keys.

    Raises:
        DatasetError: a key is not part of the format, or the keys fit several formats; `where` is
            the key.
    """
    if not columns:
        return format
    known = {name: (*keys.required, *keys.optional) for name, keys in KEYS.items()}
    names = KEYS if format == "auto" else [format]
    for key in columns:
        among = sorted({k for name in names for k in known[name]})
        if key not in among:
            kind = "a key of a format" if format == "auto" else f"a key of the {format} format"
            hint = meant(key, among) or f"valid keys: {some(among, len(among))}"
            raise DatasetError.at(key, f"expected {kind}; found {quoted(key)}", hint)
    fits = [name for name in names if all(key in known[name] for key in columns)]
    if not fits:
        problem = f"no format has all of these keys: {', '.join(columns)}"
        raise DatasetError.at("columns", problem, "use the keys of one format")
    if len(fits) > 1:
        problem = f"the keys fit several formats: {' and '.join(fits)}"
        raise DatasetError.at("columns", problem, "set the format too")
    return fits[0]
