"""Under which license a base model is, as its own page says.

Sources: the `license` fields of the model cards (`https://huggingface.co/<name>`) and the Qwen
team's announcements. Everything in our table is under Apache 2.0, but Qwen2.5 and Qwen2.5-Coder 3B
(the Qwen research license) and Qwen2.5 72B (the Qwen license).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qwen_local.models.published import PUBLISHED

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
LINK = re.compile(r"https://[A-Za-z0-9./_~%-]{1,500}")

OTHERS = {
    "Qwen2.5-3B": "qwen-research",
    "Qwen2.5-Coder-3B": "qwen-research",
    "Qwen2.5-72B": "qwen",
}
"""What is not under Apache 2.0, with or without -Instruct."""


@dataclass(frozen=True, kw_only=True, slots=True)
class License:
    """The fields that a model card has for it."""

    identifier: str
    """`apache-2.0`, or `other` for one that the hub has no identifier for."""
    name: str | None = None
    """Of one that is `other`."""
    link: str | None = None
    """To the text of one that is `other`."""


def license_of(name: str) -> License | None:
    """The license of a model of `PUBLISHED`; None of any other.

    >>> license_of("Qwen/Qwen3-0.6B").identifier
    'apache-2.0'
    >>> license_of("Qwen/Qwen2.5-3B-Instruct").name
    'qwen-research'
    """
    if name not in PUBLISHED:
        return None
    other = OTHERS.get(name.removeprefix("Qwen/").removesuffix("-Instruct"))
    if other is None:
        return License(identifier="apache-2.0")
    link = f"https://huggingface.co/{name}/blob/main/LICENSE"
    return License(identifier="other", name=other, link=link)


def license_in(folder: Path) -> License | None:
    """The license that the README.md of a model's folder states in its front matter.

    None where there is none, or none that can be taken over: a link to a file beside it leads
    nowhere from another place.
    """
    from huggingface_hub import metadata_load

    try:
        data = metadata_load(folder / "README.md") or {}
    except Exception:  # whatever a page that others wrote does to a reader of YAML
        return None
    identifier, name = (_matching(IDENTIFIER, data.get(k)) for k in ("license", "license_name"))
    if identifier is None or (identifier == "other" and name is None):
        return None
    link = _matching(LINK, data.get("license_link"))
    return License(identifier=identifier, name=name, link=link)


def _matching(pattern: re.Pattern[str], value: object) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None
