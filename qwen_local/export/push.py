"""`export --push-to-hub`: upload a finished folder to the hub.

Everything is checked before the hub is contacted. Only files with known names at the top of the
folder are uploaded, and none of them may contain a path of this machine.
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
"""Other files to upload. proof.json is not among them: it has paths of this machine, and the model
card shows its figures."""

NO_ID = ("not a valid hub id", "write <owner>/<name>, such as me/my-adapter")

BASE_KEYS = (
    ("adapter_config.json", "base_model_name_or_path"),
    ("adapter_config.json", "model"),
)
"""(file, key) of the base model's name, which `_base_faults` checks."""

LOCAL_PATH = re.compile(r"/|~|\\\\|[A-Za-z]:[\\/]")
"""Start of a path on some machine."""


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload a folder that `export` or `fuse` made to the hub.

    HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE apply. Files are added to an existing repository.

    Args:
        folder: PEFT's or mlx-lm's layout of an adapter, a merged model, or GGUF files.
        repo_id: `owner/name`.
        private: create a private repository, and refuse an existing public one.

    Returns:
        URL of the repository.

    Raises:
        InputError: the folder, the id or the settings cannot be used; nothing was uploaded.
        QwenLocalError: the hub cannot be reached, or the upload failed.
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
            problem = f"{repo_id} exists already and is public"
            hint = "make it private in its settings on the hub, or choose another name"
            raise InputError.at("private", problem, hint)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in files],
            commit_message="Upload with qwen-local",
        )
    except QwenLocalError:
        raise
    except Exception as error:  # each transport raises its own errors
        raise _explained(error, repo_id, folder) from error
    log.info("pushed to %s: %s", url, ", ".join(files))
    return str(url)


def check_push(repo_id: str | None, *, private: bool) -> None:
    """Check the options of an upload before the folder is made.

    Args:
        repo_id: `owner/name`; None for no upload.
        private: True for a private repository.

    Raises:
        InputError: the id is invalid, there is no token, the hub is offline, or `private` comes
            without an id.
    """
    if repo_id is not None:
        check_settings()
        if faults := [*_hub_faults(repo_id)]:
            raise InputError(faults)
    elif private:
        problem = "expected `push_to_hub`, without which nothing is uploaded; it is missing"
        raise InputError.at("private", problem, "add `push_to_hub=OWNER/NAME`")


def files_to_push(folder: Path) -> list[str]:
    """Return the names of the files to upload, sorted."""
    known = (*WEIGHTS, *CONFIGS, *OTHERS)
    if not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in known)
    )


def _folder_faults(folder: Path, files: list[str]) -> Iterator[Fault]:
    """Yield the reasons why others could not use the folder, and paths that reveal this machine."""
    if not any(fnmatch(name, pattern) for name in files for pattern in WEIGHTS):
        problem = "expected an adapter, a model or a GGUF file; found none"
        yield Fault(str(folder), problem, "name a folder that export or fuse made")
    if {PEFT_WEIGHTS, MLX_WEIGHTS} & {*files}:
        yield from _base_faults(folder)
    for name in files:
        for key, text in _texts_in(folder / name):
            if LOCAL_PATH.match(text) and (name, key) not in BASE_KEYS:
                where = f"{folder / name}: {key}"
                yield Fault(where, f"has a path of this machine: {text!r:.80}", "remove it")
    home = os.path.expanduser("~")  # noqa: PTH111 - Path raises where there is none
    for name in ("README.md", "Modelfile"):
        if name in files and len(home) > 1 and home in _text(folder / name):
            yield Fault(str(folder / name), f"has the path {home} of this machine", "remove it")


def _base_faults(folder: Path) -> Iterator[Fault]:
    """Yield a fault if others cannot load the base model of an adapter."""
    try:
        name, origin = named_base(folder)
    except InputError as error:
        yield from error.faults
        return
    if hub_base(name, None if origin == Origin() else origin) is None:
        yield Fault(
            f"{folder / 'adapter_config.json'}: base model",
            f"expected a model on the hub; found {name!r:.80}",
            "push the merged model, which needs no base model (`qwen-local fuse`, or `qwen-local "
            "export --to gguf`); or, if the base model is on the hub, export again with `model` "
            "set to its id",
        )


def _hub_faults(repo_id: str) -> Iterator[Fault]:
    """Yield the reasons why nothing can be uploaded to this repository."""
    from huggingface_hub import constants, get_token

    where = f"push_to_hub {repo_id}"
    if not HUB_ID.fullmatch(repo_id):
        yield Fault(where, *NO_ID)
    if constants.HF_HUB_OFFLINE:
        yield Fault(
            where, "HF_HUB_OFFLINE is set, so the hub is not contacted", "unset HF_HUB_OFFLINE"
        )
    if get_token() is None:
        problem = "there is no token for the hub"
        hint = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
        yield Fault(where, problem, hint)


def _explained(error: Exception, repo_id: str, folder: Path) -> QwenLocalError:
    """Return the error to raise for an error of the hub's client."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    where = f"push_to_hub {repo_id}"
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
            problem = f"the token has no write access there (the hub answered {status})"
            hint = f"use a token with write access to {owner}, or another owner"
            return InputError.at(where, problem, hint)
        case int():
            last_line = str(error).strip().splitlines()[-1:] or [""]
            return QwenLocalError(f"{where}: the hub answered {status}: {last_line[0]}")
    reason = [type(error).__name__, *str(error).strip().splitlines()[:1]]
    return QwenLocalError(
        f"{where}: the upload to {constants.ENDPOINT} failed: {': '.join(reason)}\n\n"
        f"hint: {folder} is complete; check the connection (HTTPS_PROXY, HF_ENDPOINT) and upload "
        f"it with: hf upload {repo_id} {shlex.quote(str(folder))} . --exclude {PROOF}"
    )


def _texts_in(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (key or instruction, text) of everything in a file that may be a path."""
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
    """Yield (dotted key, text) for every text in a JSON value."""
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
    """Read a JSON file; None if it is unreadable, which other checks report."""
    try:
        return json.loads(_text(file))
    except (ValueError, RecursionError):
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
