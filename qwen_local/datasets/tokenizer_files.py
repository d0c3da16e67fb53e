"""The files of a model folder that say how text becomes tokens and conversations become text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tokenizers import Tokenizer

from qwen_local.datasets.faults import unusable
from qwen_local.datasets.turns import END, END_OF_TEXT, START
from qwen_local.errors import Fault, ModelError

MOST_SPECIAL = 0x800
"""Special tokens: each stands for a lone surrogate while a conversation is rendered."""

FOLDER_HINT = "give the folder of a whole Qwen model, with its tokenizer"
TEMPLATE_HINT = "take chat_template.jinja from the instruct model of the same family"

T = TypeVar("T")


class TokenizerFiles(NamedTuple):
    """What `ChatTokenizer` is put together from."""

    tokenizer: Tokenizer
    template: str
    """The Jinja source."""
    template_file: Path
    variables: dict[str, str]
    """Tokens that the template may name, such as `eos_token`."""


def read_files(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json, tokenizer_config.json and chat_template.jinja.

    The last wins over the template inside tokenizer_config.json.

    Raises:
        ModelError: a file is missing or cannot be used; all of them at once.
    """
    faults: list[Fault] = []
    tokenizer = _gather(faults, _read_tokenizer, folder / "tokenizer.json")
    config = _gather(faults, _read_config, folder / "tokenizer_config.json")
    named = None if config is None else _gather(faults, _read_template, folder, config)
    if tokenizer is None or config is None or named is None:
        raise ModelError(faults)
    file, template = named
    tokens = {key: _content(config.get(f"{key}_token")) for key in ("bos", "eos", "pad", "unk")}
    variables = {f"{key}_token": text for key, text in tokens.items() if text is not None}
    return TokenizerFiles(tokenizer, template, file, variables)


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The control tokens of a tokenizer (`<think>` and the like are words to it): text to id."""
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: id for id, token in added.items() if token.special}


def _gather(faults: list[Fault], read: Callable[..., T], *args: Any) -> T | None:
    """What `read` returns, or None with its faults added to the list."""
    try:
        return read(*args)
    except ModelError as error:
        faults += error.faults
        return None


def _read_tokenizer(file: Path) -> Tokenizer:
    if not file.is_file():
        raise ModelError.at(str(file), "no such file", FOLDER_HINT)
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ModelError.at(str(file), f"not a tokenizer: {error}", FOLDER_HINT) from None
    special = special_tokens(tokenizer)
    if missing := [token for token in (START, END, END_OF_TEXT) if token not in special]:
        problem = f"expected the special tokens of Qwen; missing: {', '.join(missing)}"
        raise ModelError.at(str(file), problem, "use a Qwen model and its own tokenizer.json")
    if len(special) > MOST_SPECIAL:
        problem = f"expected at most {MOST_SPECIAL} special tokens; found {len(special)}"
        raise ModelError.at(str(file), problem, "use a Qwen model and its own tokenizer.json")
    return tokenizer


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError.at(str(file), f"cannot be read: {error}", FOLDER_HINT) from None


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}  # everything in it that we use may also stand elsewhere, or be absent
    try:
        config = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise ModelError.at(str(file), f"not valid JSON: {error}", FOLDER_HINT) from None
    if not isinstance(config, dict):
        raise ModelError.at(str(file), "expected a JSON object", FOLDER_HINT)
    return config


def _read_template(folder: Path, config: Mapping[str, Any]) -> tuple[Path, str]:
    """The file that holds the chat template, and the template."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file, _read_text(file)
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        problem = "no chat template: neither this file nor `chat_template` in tokenizer_config.json"
        raise ModelError.at(str(file), problem, TEMPLATE_HINT)
    named_file = folder / "tokenizer_config.json"
    if unusable(template):
        problem = "holds what is no text: a NUL, or half of a surrogate pair"
        raise ModelError.at(f"{named_file}: chat_template", problem, TEMPLATE_HINT)
    return named_file, template


def _content(token: object) -> str | None:
    """A token of tokenizer_config.json, which is written as text or as an object."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None
