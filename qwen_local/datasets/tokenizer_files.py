"""Read the tokenizer and chat template files of a model folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tokenizers import Tokenizer

from qwen_local.datasets.faults import unusable
from qwen_local.datasets.turns import END, END_OF_TEXT, START
from qwen_local.errors import Fault, ModelError

MAX_SPECIAL_TOKENS = 0x800
"""Maximum number of special tokens: rendering replaces each by a different lone surrogate."""

FOLDER_HINT = "use the folder of a complete Qwen model, including its tokenizer"
TEMPLATE_HINT = "copy chat_template.jinja from the instruct model of the same family"

T = TypeVar("T")


class TokenizerFiles(NamedTuple):
    """Inputs of `ChatTokenizer`."""

    tokenizer: Tokenizer
    template: str
    """Jinja source of the chat template."""
    template_file: Path
    """File that contains the template."""
    variables: dict[str, str]
    """Special tokens that the template can refer to, such as `eos_token`."""


def read_files(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json, tokenizer_config.json and chat_template.jinja.

    chat_template.jinja takes precedence over the template inside tokenizer_config.json.

    Raises:
        ModelError: files are missing or invalid; the error lists all of them.
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
    """Return the id of each control token; `<think>` and similar tokens are not control tokens."""
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: id for id, token in added.items() if token.special}


def _gather(faults: list[Fault], read: Callable[..., T], *args: Any) -> T | None:
    """Call `read`; on a `ModelError`, add its faults to the list and return None."""
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
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError.at(str(file), f"not a tokenizer: {error}", FOLDER_HINT) from None
    special = special_tokens(tokenizer)
    if missing := [token for token in (START, END, END_OF_TEXT) if token not in special]:
        problem = f"expected the special tokens of Qwen; missing: {', '.join(missing)}"
        raise ModelError.at(str(file), problem, "use a Qwen model and its own tokenizer.json")
    if len(special) > MAX_SPECIAL_TOKENS:
        problem = f"expected at most {MAX_SPECIAL_TOKENS} special tokens; found {len(special)}"
        raise ModelError.at(str(file), problem, "use a Qwen model and its own tokenizer.json")
    return tokenizer


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError.at(str(file), f"cannot be read: {error}", FOLDER_HINT) from None


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}  # everything that we read from it is optional or also in another file
    try:
        config = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise ModelError.at(str(file), f"not valid JSON: {error}", FOLDER_HINT) from None
    if not isinstance(config, dict):
        raise ModelError.at(str(file), "expected a JSON object", FOLDER_HINT)
    return config


def _read_template(folder: Path, config: Mapping[str, Any]) -> tuple[Path, str]:
    """Return the file with the chat template, and the template."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file, _read_text(file)
    template = config.get("chat_template")
    if isinstance(template, list):  # several templates by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        problem = "no chat template: neither this file nor `chat_template` in tokenizer_config.json"
        raise ModelError.at(str(file), problem, TEMPLATE_HINT)
    named_file = folder / "tokenizer_config.json"
    if unusable(template):
        problem = "contains invalid text: a NUL character or half of a surrogate pair"
        raise ModelError.at(f"{named_file}: chat_template", problem, TEMPLATE_HINT)
    return named_file, template


def _content(token: object) -> str | None:
    """Return the text of a token in tokenizer_config.json, written as text or as an object."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None
