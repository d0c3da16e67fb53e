"""Licenses of base models.

Sources: the `license` fields of the model cards (`https://huggingface.co/<name>`) and the Qwen
team's announcements. All published models are under Apache 2.0, except Qwen2.5 3B and
Qwen2.5-Coder 3B (Qwen research license) and Qwen2.5 72B (Qwen license).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qwen_local.models.published import PUBLISHED

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
LINK = re.compile(r"https://[A-Za-z0-9./_~%-]{1,500}")

OTHER_LICENSES = {
    "Qwen2.5-3B": "qwen-research",
    "Qwen2.5-Coder-3B": "qwen-research",
    "Qwen2.5-72B": "qwen",
}
"""Models that are not under Apache 2.0, with or without -Instruct."""


@dataclass(frozen=True, kw_only=True, slots=True)
class License:
    """License fields of a model card."""

    identifier: str
    """`apache-2.0`, or `other` for licenses without an identifier on the hub."""
    name: str | None = None
    """Only with `other`."""
    link: str | None = None
    """Link to the text, only with `other`."""


def license_of(name: str) -> License | None:
    """Return the license of a model in `PUBLISHED`; None for any other.

    >>> license_of("Qwen/Qwen3-0.6B").identifier
    'apache-2.0'
    >>> license_of("Qwen/Qwen2.5-3B-Instruct").name
    'qwen-research'
    """
    if name not in PUBLISHED:
        return None
    other = OTHER_LICENSES.get(name.removeprefix("Qwen/").removesuffix("-Instruct"))
    if other is None:
        return License(identifier="apache-2.0")
    link = f"https://huggingface.co/{name}/blob/main/LICENSE"
    return License(identifier="other", name=other, link=link)


def license_in(folder: Path) -> License | None:
    """Read the license from the front matter of README.md in a model's folder.

    None if it has none, or none that can be copied: a relative link would not work elsewhere.
    """
    from huggingface_hub import metadata_load

    try:
        data = metadata_load(folder / "README.md") or {}
    except Exception:  # a README of others may break a YAML parser in any way
        return None
    identifier, name = (_matching(IDENTIFIER, data.get(k)) for k in ("license", "license_name"))
    if identifier is None or (identifier == "other" and name is None):
        return None
    link = _matching(LINK, data.get("license_link"))
    return License(identifier=identifier, name=name, link=link)


def _matching(pattern: re.Pattern[str], value: object) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None
