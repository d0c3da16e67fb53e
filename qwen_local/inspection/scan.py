"""Scans of training text for control characters and secrets, and text normalization."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Every control character except tab, line feed and carriage return."""

SECRET_PREFIX_LENGTH = 4
"""Maximum number of characters of a secret that are printed."""

SECRET_PATTERNS = {
    "private key": ("-----BEGIN ", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "Hugging Face token": ("hf_", r"\bhf_[A-Za-z0-9]{30,}\b"),
    # The length and the digit exclude names such as sk-learn-...
    "API key (sk-)": ("sk-", r"\bsk-(?=[\w-]*\d)[\w-]{32,}"),
    "GitHub token": ("gh", r"\bgh[opsur]_[A-Za-z0-9]{36,}\b"),
    "GitHub fine-grained token": ("github_pat_", r"\bgithub_pat_\w{22,}\b"),
    "AWS access key": ("IA", r"\bA(?:K|S)IA[0-9A-Z]{16}\b"),
    "Slack token": ("xox", r"\bxox[a-z]-(?=[A-Za-z-]*\d)[A-Za-z0-9-]{10,}"),
}
"""(substring for a fast first test, pattern) by kind. The patterns are narrow to avoid false
alarms."""

_COMPILED = {
    kind: (substring, re.compile(pattern)) for kind, (substring, pattern) in SECRET_PATTERNS.items()
}


def control_characters(text: str) -> list[str]:
    r"""Return the kinds of control characters in a text.

    >>> control_characters("tab\t, \x1b[31mred\x1b[0m")
    ['U+001B']
    """
    return sorted({f"U+{ord(found):04X}" for found in CONTROL_CHARACTERS.findall(text)})


def secrets(text: str) -> list[tuple[str, str]]:
    """Return (kind, first characters) of everything that looks like a secret.

    >>> secrets("my key is hf_" + "aB3" * 12)
    [('Hugging Face token', 'hf_a')]
    """
    return [
        (kind, match[0][:SECRET_PREFIX_LENGTH])
        for kind, (substring, pattern) in _COMPILED.items()
        if substring in text
        for match in pattern.finditer(text)
    ]


def normalized(value: Any) -> Any:
    r"""Normalize case, whitespace and compatibility characters of all texts in a JSON value.

    >>> normalized(["  Straße\n№ 1"])
    ['strasse no 1']
    """
    match value:
        case str():
            return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
        case list() | tuple():
            return [normalized(item) for item in value]
        case dict():
            return {key: normalized(item) for key, item in value.items()}
        case _:
            return value


def text_of(value: Any) -> str:
    """Join all texts in a JSON value with line feeds.

    >>> text_of([{"role": "user", "content": "Hi"}])
    'user\\nHi'
    """
    pending, texts = [value], []
    while pending:
        match pending.pop():
            case str() as text:
                texts.append(text)
            case list() | tuple() as items:
                pending.extend(reversed(items))
            case dict() as items:
                pending.extend(reversed(items.values()))
    return "\n".join(texts)
