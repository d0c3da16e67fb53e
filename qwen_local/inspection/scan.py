"""What a person should look at in a text before it is learned: control characters and secrets."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Every control character but tab, line feed and carriage return."""

SHOWN = 4
"""Characters of a secret that are ever printed."""

SECRETS = {
    "private key": ("-----BEGIN ", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "Hugging Face token": ("hf_", r"\bhf_[A-Za-z0-9]{30,}\b"),
    # A name such as sk-learn-... is not that long or has no digit.
    "API key (sk-)": ("sk-", r"\bsk-(?=[\w-]*\d)[\w-]{32,}"),
    "GitHub token": ("gh", r"\bgh[opsur]_[A-Za-z0-9]{36,}\b"),
    "GitHub fine-grained token": ("github_pat_", r"\bgithub_pat_\w{22,}\b"),
    "AWS access key": ("IA", r"\bA(?:K|S)IA[0-9A-Z]{16}\b"),
    "Slack token": ("xox", r"\bxox[a-z]-(?=[A-Za-z-]*\d)[A-Za-z0-9-]{10,}"),
}
"""By kind: a piece that each holds, which is quickly looked for, and its form. Forms are narrow:
a list of false alarms is not read."""

_FORMS = {kind: (piece, re.compile(form)) for kind, (piece, form) in SECRETS.items()}


def control_characters(text: str) -> list[str]:
    r"""The kinds of control character in a text.

    >>> control_characters("tab\t, \x1b[31mred\x1b[0m")
    ['U+001B']
    """
    return sorted({f"U+{ord(found):04X}" for found in CONTROL.findall(text)})


def secrets(text: str) -> list[tuple[str, str]]:
    """(kind, first characters) of everything that looks like a secret.

    >>> secrets("my key is hf_" + "aB3" * 12)
    [('Hugging Face token', 'hf_a')]
    """
    return [
        (kind, match[0][:SHOWN])
        for kind, (piece, form) in _FORMS.items()
        if piece in text
        for match in form.finditer(text)
    ]


def normalized(value: Any) -> Any:
    r"""A JSON value whose texts differ no longer in case, white space and compatible characters.

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
    """All texts in a JSON value, one after the other.

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
