"""The keys of each format, and which columns of a file stand for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from qwen_local.datasets.faults import meant, quoted, some
from qwen_local.errors import DatasetError

Format = Literal["messages", "prompt", "alpaca", "sharegpt", "text"]
FormatName = Literal["auto", Format]


class Keys(NamedTuple):
    """The keys that a record of a format has, and those that it may have."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


TOOLS = ("tools", "functions")
"""What the assistant may call; the second is OpenAI's older name."""

META = ("id", "category")
"""Keys of any record that describe it: its name, and the group that it belongs to."""

KEYS: Mapping[Format, Keys] = {
    "messages": Keys(("messages",), (*TOOLS, *META)),
    "prompt": Keys(("prompt", "completion"), (*TOOLS, *META)),
    "alpaca": Keys(("instruction", "output"), ("input", "system", "history", *TOOLS, *META)),
    "sharegpt": Keys(("conversations",), ("system", *TOOLS, *META)),
    "text": Keys(("text",), META),
}
"""In the order in which a record is tried."""


def settle(columns: Mapping[str, str], format: FormatName) -> FormatName:
    """The format of records whose keys stand in other columns.

    >>> settle({"completion": "answer"}, "auto")
    'prompt'

    Args:
        columns: the column of the file for each key of the format that has another name there.
        format: as the user named it; `auto` leaves it to the keys.

    Raises:
        DatasetError: a key is none of the format, or the keys leave it open; `where` is the key.
    """
    if not columns:
        return format
    known = {name: (*keys.required, *keys.optional) for name, keys in KEYS.items()}
    names = KEYS if format == "auto" else [format]
    for key in columns:
        among = sorted({k for name in names for k in known[name]})
        if key not in among:
            of = "a key of a format" if format == "auto" else f"a key of the {format} format"
            hint = meant(key, among) or f"the keys are {some(among, len(among))}"
            raise DatasetError.at(key, f"expected {of}; found {quoted(key)}", hint)
    fits = [name for name in names if all(key in known[name] for key in columns)]
    if not fits:
        problem = f"no format has all of {', '.join(columns)}"
        raise DatasetError.at("columns", problem, "name the keys of one format")
    if len(fits) > 1:
        problem = f"expected a key that only one format has; {' and '.join(fits)} have these"
        raise DatasetError.at("columns", problem, "name the format as well")
    return fits[0]
