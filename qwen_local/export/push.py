"""`export --push-to-hub`: a finished folder goes to the hub, when that is asked for.

Everything is checked before the hub is touched. What goes up are files of known names at the top of
the folder, and none of them may name a place on this machine.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from qwen_local.adapters.lora import Origin
from qwen_local.adapters.store import MLX_WEIGHTS, ORIGIN, PEFT_WEIGHTS, named_base
from qwen_local.backends.hub import check_settings
from qwen_local.cards.facts import hub_base
from qwen_local.errors import Fault, InputError, QwenLocalError
from qwen_local.files import expanded
from qwen_local.models.source import HUB_ID, PROOF, TOKENIZER_PARTS

log = logging.getLogger("qwen_local")

WEIGHTS = (
    PEFT_WEIGHTS,
    MLX_WEIGHTS,
    "model.safetensors",
    "model-*-of-*.safetensors",
    "*.gguf",
)
CONFIGS = ("adapter_config.json", "config.json", "generation_config.json", ORIGIN)
OTHERS = (
    "README.md",
    "Modelfile",
    "model.safetensors.index.json",
    *TOKENIZER_PARTS,
)
"""A proof.json is not among them: it names the folders that it was made from, and the model card
has its figures."""

NO_ID = ("not a valid hub id", "write <owner>/<name>, such as me/my-adapter")

BASES = (
    ("adapter_config.json", "base_model_name_or_path"),
    ("adapter_config.json", "model"),
)
"""What is told of otherwise."""

PLACE = re.compile(r"/|~|\\\\|[A-Za-z]:[\\/]")
"""How the name of a place on a machine begins."""


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Put a folder that `export` or `fuse` made on the hub.

    HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE count. A repository that is there already is added to.

    Args:
        folder: PEFT's or mlx-lm's layout of an adapter, a merged model, or GGUF files.
        repo_id: `owner/name`.
        private: make the repository private, and refuse one that is public.

    Returns:
        The address of the repository.

    Raises:
        InputError: something of this cannot be used; nothing was uploaded.
        QwenLocalError: the hub could not be reached, or the upload broke off.
    """
    check_settings()
    folder = expanded(folder)
    files = files_to_push(folder)
    if faults := [*_folder_faults(folder, files), *_hub_faults(repo_id)]:
        raise InputError(faults)
    from huggingface_hub import HfApi

    api = HfApi(library_name="qwen-local")
    try:
        url = api.create_repo(repo_id, private=True if private else None, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            problem = f"{repo_id} is there already, and public"
            hint = "make it private in its settings on the hub, or name a new one"
            raise InputError.at("--private", problem, hint)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in files],
            commit_message="Upload with qwen-local",
        )
    except QwenLocalError:
        raise
    except Exception as error:  # each transport has errors of its own
        raise _explained(error, repo_id, folder) from error
    log.info("pushed to %s: %s", url, ", ".join(files))
    return str(url)


def check_push(repo_id: str | None, *, private: bool) -> None:
    """Refuse what no folder could be pushed with, before the folder is made.

    Args:
        repo_id: `owner/name`; None where nothing is to be pushed.
        private: whether the repository is to be.

    Raises:
        InputError: a bad id, no token, no network wanted; `private` without an id.
    """
    if repo_id is not None:
        check_settings()
        if faults := [*_hub_faults(repo_id)]:
            raise InputError(faults)
    elif private:
        problem = "goes with --push-to-hub OWNER/NAME, which is missing"
        raise InputError.at("--private", problem, "nothing is uploaded without it")


def files_to_push(folder: Path) -> list[str]:
    """The names of the files that would go up, sorted."""
    known = (*WEIGHTS, *CONFIGS, *OTHERS)
    if not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in known)
    )


def _folder_faults(folder: Path, files: list[str]) -> Iterator[Fault]:
    """What keeps the folder from being of use to others, or tells them of this machine."""
    if not any(fnmatch(name, pattern) for name in files for pattern in WEIGHTS):
        problem = "found neither an adapter nor a model nor a GGUF file"
        yield Fault(str(folder), problem, "name a folder that export or fuse made")
    if {PEFT_WEIGHTS, MLX_WEIGHTS} & {*files}:
        yield from _base_faults(folder)
    for name in files:
        for key, text in _texts_in(folder / name):
            if PLACE.match(text) and (name, key) not in BASES:
                where = f"{folder / name}: {key}"
                yield Fault(where, f"names a place on this machine: {text!r:.80}", "take it out")
    home = os.path.expanduser("~")  # noqa: PTH111 - Path raises where there is none
    for name in ("README.md", "Modelfile"):
        if name in files and len(home) > 1 and home in _text(folder / name):
            yield Fault(str(folder / name), f"names the folder {home}", "take it out")


def _base_faults(folder: Path) -> Iterator[Fault]:
    """An adapter is of use only with a base that others can load."""
    try:
        name, origin = named_base(folder)
    except InputError as error:
        yield from error.faults
        return
    if hub_base(name, None if origin == Origin() else origin) is None:
        yield Fault(
            f"{folder / 'adapter_config.json'}: base model",
            f"expected a model on the hub; found {name!r:.80}",
            "push the merged model, which needs no base (fuse, or export --to gguf); or, if the "
            "base is on the hub, export again with --model and its id",
        )


def _hub_faults(repo_id: str) -> Iterator[Fault]:
    from huggingface_hub import constants, get_token

    where = f"--push-to-hub {repo_id}"
    if not HUB_ID.fullmatch(repo_id):
        yield Fault(where, *NO_ID)
    if constants.HF_HUB_OFFLINE:
        yield Fault(where, "HF_HUB_OFFLINE forbids to ask the hub", "unset HF_HUB_OFFLINE")
    if get_token() is None:
        problem = "no token of the hub is set"
        hint = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
        yield Fault(where, problem, hint)


def _explained(error: Exception, repo_id: str, folder: Path) -> QwenLocalError:
    """What went wrong between here and the hub."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    where = f"--push-to-hub {repo_id}"
    if isinstance(error, HFValidationError):  # it has rules beyond the pattern: no `--`, ...
        return InputError.at(where, *NO_ID)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    owner = repo_id.partition("/")[0]
    match status:
        case 401:
            problem = "the hub does not know the token"
            return InputError.at(
                where, problem, "log in again with `hf auth login`, or set HF_TOKEN"
            )
        case 403 | 404:
            problem = f"the token may not write there (the hub answered {status})"
            hint = f"take a token with write access to {owner}, or another owner"
            return InputError.at(where, problem, hint)
        case int():
            said = str(error).strip().splitlines()[-1:] or [""]
            return QwenLocalError(f"{where}: the hub answered {status}: {said[0]}")
    said = [type(error).__name__, *str(error).strip().splitlines()[:1]]
    return QwenLocalError(
        f"{where}: the upload to {constants.ENDPOINT} broke off: {': '.join(said)}\n\n"
        f"hint: {folder} is whole; check the connection (HTTPS_PROXY, HF_ENDPOINT), and upload it "
        f"with: hf upload {repo_id} {shlex.quote(str(folder))} . --exclude {PROOF}"
    )


def _texts_in(file: Path) -> Iterator[tuple[str, str]]:
    """(key or instruction, text) of everything in a file that may name a place."""
    if file.name in CONFIGS:
        yield from _texts(_json(file))
    elif file.name == "tokenizer_config.json":  # its tokens may look like anything
        content = _json(file)
        yield "name_or_path", str(content.get("name_or_path") if isinstance(content, dict) else "")
    elif file.name == "Modelfile":
        for line in _text(file).splitlines():
            instruction, _, value = line.partition(" ")
            if instruction.upper() in ("FROM", "ADAPTER"):
                yield instruction, value.strip().strip('"')


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) for every text in a JSON value."""
    match content:
        case str():
            yield key, content
        case dict():
            for name, value in content.items():
                yield from _texts(value, f"{key}.{name}" if key else str(name))
        case list():
            for number, value in enumerate(content):
                yield from _texts(value, f"{key}[{number}]")


def _json(file: Path) -> Any:
    """None where it cannot be read, which its reader will say better."""
    try:
        return json.loads(_text(file))
    except (ValueError, RecursionError):
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
