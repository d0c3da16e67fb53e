"""Finding and fetching models: embedded in the package, in a folder, or on the hub.

The name of an existing folder means that folder and is never looked up on the hub. All access to
the hub goes through huggingface_hub, which honors HF_HOME, HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwen_local.embedded import TINY_MODEL, tiny_model_path
from qwen_local.errors import Fault, ModelError
from qwen_local.models.architecture import Architecture
from qwen_local.models.config import check_folder
from qwen_local.models.families import architecture_of
from qwen_local.models.published import PUBLISHED
from qwen_local.models.tensor_check import tensor_faults

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

OWNER_AND_MODEL = "a hub id is <owner>/<model>"

PROOF = "proof.json"
"""Report that `fuse` and `export` write beside their output."""
CONFIG_FILES = ("config.json",)
TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "*.jinja")
TOKENIZER_PARTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""Tokenizer files that are copied to a merged model, if the base model has them."""
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.json")
"""Files that are downloaded: data only, no code and no pickle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A model's name and location."""

    kind: Literal["embedded", "folder", "hub"]
    name: str
    folder: Path | None
    """None for a model on the hub."""
    revision: str | None
    """Commit, branch or tag on the hub; None is the newest."""

    def architecture(self, *, download: bool) -> Architecture:
        """Return the model's architecture.

        Args:
            download: whether config.json may be downloaded. If not, a hub model is looked up in
                `PUBLISHED`, then in the cache.

        Raises:
            ModelError: the architecture is not available, or config.json is refused.
        """
        if self.kind == "hub" and not download and self.name in PUBLISHED:
            return PUBLISHED[self.name]
        return fetch(self, weights=False, download=download).architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """A model in a folder, checked and ready for an engine."""

    name: str
    folder: Path
    commit: str | None
    """The commit on the hub; None for a local folder and for the embedded model."""
    config: Mapping[str, Any]
    architecture: Architecture


def find_model(name: str, revision: str | None = None) -> ModelSource:
    """Decide what a name means, without network access.

    Args:
        name: `qwen-local/tiny`, a folder, or a hub id such as `Qwen/Qwen3-0.6B`.
        revision: of a hub model.

    Raises:
        ModelError: the name matches none of these, or the revision is not for a hub model.
    """
    # os.path, because Path raises for names that no file system allows (too long, `~nobody`).
    place = os.path.expanduser(name)  # noqa: PTH111
    if name == TINY_MODEL:
        folder = tiny_model_path()
        source = ModelSource(kind="embedded", name=name, folder=folder, revision=revision)
    elif os.path.isdir(place):  # noqa: PTH112
        source = ModelSource(kind="folder", name=name, folder=Path(place), revision=revision)
    elif os.path.exists(place):  # noqa: PTH110
        hint = f"pass the folder that holds it: {Path(place).parent}"
        if place.endswith(".gguf"):
            hint = "GGUF is for llama.cpp and Ollama; pass the model that it was made from"
        raise ModelError.at(name, "expected a model folder; found a file", hint)
    elif name.startswith("qwen-local/"):
        raise ModelError.at(name, "no such embedded model", f"did you mean {TINY_MODEL}?")
    elif HUB_ID.fullmatch(name):
        source = ModelSource(kind="hub", name=name, folder=None, revision=revision)
    else:
        problem = "expected an existing folder or a hub id; found neither"
        raise ModelError.at(name or "model", problem, _near(name) or OWNER_AND_MODEL)
    if revision is not None and source.kind != "hub":
        problem = f"only models on the hub have revisions; found {revision!r}"
        raise ModelError.at(name, problem, "remove model.revision")
    return source


def fetch(source: ModelSource, *, weights: bool = True, download: bool = True) -> ModelFiles:
    """Download a model if necessary, and check its files.

    The config.json of a hub model comes first, so that a refused model costs no download.

    Args:
        source: from `find_model`.
        weights: whether weights and tokenizer are needed, or config.json only.
        download: whether the network may be used, or the cache only.

    Raises:
        ModelError: the model is not available, or its files are refused.
    """
    if source.folder is not None:
        folder, commit = source.folder, None
    else:
        folder = _snapshot(source.name, source.revision, CONFIG_FILES, download)
        commit = folder.name
        if weights:
            check_folder(folder, source.name, weights=False)
            folder = _snapshot(source.name, commit, MODEL_FILES, download)
    config = check_folder(folder, source.name, weights=weights)
    architecture = architecture_of(config)
    if weights and (faults := list(tensor_faults(folder, source.name, architecture))):
        raise ModelError(faults)
    return ModelFiles(
        name=source.name,
        folder=folder,
        commit=commit,
        config=config,
        architecture=architecture,
    )


def fetch_tokenizer(source: ModelSource) -> Path:
    """Download a model's tokenizer if necessary: a few megabytes, without weights.

    Returns:
        The folder.

    Raises:
        ModelError: the files are not available, or config.json is refused.
    """
    folder = source.folder
    if folder is None:
        folder = _snapshot(source.name, source.revision, TOKENIZER_FILES, download=True)
    check_folder(folder, source.name, weights=False)
    return folder


def tokenizer_here(source: ModelSource) -> Path | None:
    """The folder with a hub model's tokenizer, where the cache has it; nothing is downloaded."""
    try:
        folder = _snapshot(source.name, source.revision, TOKENIZER_FILES, download=False)
        check_folder(folder, source.name, weights=False)
    except ModelError:
        return None
    return folder if (folder / "tokenizer.json").exists() else None


def weights_here(source: ModelSource) -> bool:
    """True for a folder, and for a hub model that is whole in the cache; nothing is downloaded."""
    if source.kind != "hub":
        return True
    try:
        folder = _snapshot(source.name, source.revision, MODEL_FILES, download=False)
        return all((folder / name).exists() for name in _weight_files(folder))
    except ModelError:
        return False


def _weight_files(folder: Path) -> list[str]:
    """Names of the weight files of a snapshot; hub caches may hold a tokenizer without them."""
    index = folder / "model.safetensors.index.json"
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return ["model.safetensors"]


def _snapshot(name: str, revision: str | None, patterns: Sequence[str], download: bool) -> Path:
    """Return the folder of one commit in the hub's cache; its name is the commit."""
    import huggingface_hub
    from huggingface_hub import errors

    # HTTPError of the HTTP library that huggingface_hub uses, which depends on its version.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],  # subfolders hold other formats
            local_files_only=not download,
        )
    except (errors.HFValidationError, HTTPError, OSError) as error:
        raise ModelError([_hub_fault(error, name, revision, download)]) from error
    return Path(folder)


def _hub_fault(error: Exception, name: str, revision: str | None, download: bool) -> Fault:
    """Explain an error of huggingface_hub; the most specific errors come first."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{name}"
    once = f"download it once while online: hf download {name}"
    match error:
        case errors.HFValidationError():
            problem, hint = "not a valid hub id", _near(name) or OWNER_AND_MODEL
        case errors.GatedRepoError():
            problem = "gated: your account has no access yet"
            hint = f"accept its terms on {page}, then set HF_TOKEN to a token of your account"
        case errors.RepositoryNotFoundError():
            problem = "neither a local folder nor a model on the hub that you can access"
            hint = _near(name) or "check the name; for a private model set HF_TOKEN"
        case errors.RevisionNotFoundError():
            problem = f"has no revision {revision!r} on the hub"
            hint = f"use one of those on {page}/tree/main, or remove model.revision"
        case errors.IncompleteSnapshotError() if constants.HF_HUB_OFFLINE or not download:
            problem, hint = "incomplete in the cache, and the hub was not contacted", once
        case errors.LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE:
            problem = "not in the cache, and HF_HUB_OFFLINE is set, so the hub was not contacted"
            hint = f"unset HF_HUB_OFFLINE, or {once}"
        case errors.LocalEntryNotFoundError() if not download:
            problem = "not a local folder, not in the cache, and not a model of known sizes"
            hint = _near(name) or f"if it is a dense Qwen2 or Qwen3, {once}"
        case errors.LocalEntryNotFoundError():
            problem = "not a local folder, not in the cache, and the hub cannot be reached"
            hint = (
                f"check the connection to {constants.ENDPOINT} (HTTPS_PROXY, HF_ENDPOINT); or, on "
                f"a machine that is online, hf download {name} --local-dir FOLDER, and pass "
                "`model=FOLDER`"
            )
        case errors.HfHubHTTPError():
            problem = f"the hub answered with status {error.response.status_code}"
            hint = "try again later; for 401 and 403 check HF_TOKEN"
        case OSError(strerror=str(reason)):
            problem = f"cannot be saved: {reason.lower()}"
            hint = f"free space in {constants.HF_HUB_CACHE}, or set HF_HOME to another folder"
        case _:
            problem = f"the download was interrupted: {type(error).__name__}"
            hint = "run the command again; it continues where it stopped"
    return Fault(name, problem, hint)


def _near(name: str) -> str | None:
    """Suggest the published model with the most similar name."""
    endings = {model.partition("/")[2].lower(): model for model in PUBLISHED}
    wanted = name.rpartition("/")[2].lower()
    near = difflib.get_close_matches(wanted, endings, n=1, cutoff=0.8)
    return f"did you mean {endings[near[0]]}?" if near and endings[near[0]] != name else None
