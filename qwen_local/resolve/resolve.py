"""Decide what a command runs on: model, adapter, engine, dtype, quantization, tokenizer, job.

Nothing is opened, and nothing is written but the hub's own cache. `train`, `plan`, `generate`,
`chat`, `fuse`, `export` and `demo` all start here, so that one request means one thing everywhere.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen_local.adapters.lora import Adapter, Origin
from qwen_local.adapters.store import base_of, load_adapter
from qwen_local.backends.base import Setup
from qwen_local.backends.machine import DType, Machine
from qwen_local.backends.select import Choice, choose, resolve_dtype
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import BackendError
from qwen_local.job.schema import Job, LoraSpec, Quantization
from qwen_local.models.architecture import Architecture
from qwen_local.models.source import (
    ModelFiles,
    ModelSource,
    fetch,
    fetch_tokenizer,
    tokenizer_here,
    weights_here,
)
from qwen_local.resolve.quantization import check_quantization, choose_for
from qwen_local.resolve.request import Request

log = logging.getLogger("qwen_local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A request with every choice made and checked."""

    request: Request
    machine: Machine
    source: ModelSource
    """Where the base model comes from, pinned to the commit where that is known."""
    model: ModelFiles
    """Folder and architecture of the base model. Without `weights` only its config.json and
    tokenizer are known to be there; the folder is empty for a model that is not on this machine."""
    weights: bool = False
    """True once the weights are on this machine and fit the architecture: see `with_weights`."""
    adapter: Adapter | None
    choice: Choice
    """Engine and device, with the reason."""
    dtype: DType
    dtype_reason: str
    quantization: Quantization
    tokenizer: ChatTokenizer | None
    """None where it was not to be downloaded and is not in the cache."""
    job: Job | None
    """The complete job, its preset applied; None where the request is not a job's."""

    @property
    def architecture(self) -> Architecture:
        """Shapes and figures of the base model."""
        return self.model.architecture

    @property
    def known_adapter(self) -> Adapter:
        """The adapter of a request that names one."""
        assert self.adapter is not None
        return self.adapter

    @property
    def known_tokenizer(self) -> ChatTokenizer:
        """The tokenizer of a request that was resolved with downloads allowed."""
        assert self.tokenizer is not None
        return self.tokenizer

    def on(self, model: ModelFiles) -> Resolved:
        """The same choices for other files that are here, such as a single block."""
        return replace(self, model=model, weights=True)

    def setup(self, **settings: Any) -> Setup:
        """Build what the engine is opened with.

        Args:
            **settings: fields of `Setup` beyond model, device, dtype and quantization. Without
                `lora` the adapter's own settings are taken.
        """
        adapter: dict[str, Any] = {"lora": None}
        if self.adapter is not None:
            lora: LoraSpec = self.adapter.lora
            adapter = {"lora": lora, "dora": self.adapter.dora}
        return Setup(
            **{
                "model": self.model,
                "device": self.choice.device,
                "dtype": self.dtype,
                "quantization": self.quantization,
                **adapter,
                **settings,
            }
        )


def resolve(request: Request, machine: Machine, *, download: bool = True) -> Resolved:
    """Make and check every choice that a request leaves open.

    Args:
        request: see `Request`.
        machine: where it is to run.
        download: False asks no network: the figures of a hub model are then the published ones, or
            those of a copy in the cache, and its tokenizer may be missing.

    Raises:
        InputError: model, adapter, engine, device or quantization cannot be used as requested.
    """
    choose(machine, request.backend, request.device)  # fails before anything is downloaded
    source = base_of(request.model, request.revision, request.adapter)
    if source.kind == "hub" and source.revision is None:
        source = replace(source, revision=request.commit)
    model = _model(source, download=download)
    if model.commit is not None:
        source = replace(source, revision=model.commit)
    architecture = model.architecture
    adapter = None if request.adapter is None else load_adapter(request.adapter, architecture)
    if adapter is not None and adapter.base not in ("", source.name):
        log.warning("the adapter was made for %s; this is %s", adapter.base, source.name)
    origin = Origin() if adapter is None else adapter.origin
    quantization = origin.quantization if request.quantization is None else request.quantization
    choice = _choose(request, machine, architecture, replace(origin, quantization=quantization))
    check_quantization(
        machine,
        choice,
        source.name,
        architecture,
        quantization,
        asked_by=_asked_by(request, origin),
    )
    dtype, dtype_reason = resolve_dtype(machine, choice, request.dtype)
    folder = _tokenizer_folder(source, download=download)
    tokenizer = None
    if folder is not None:
        model = replace(model, folder=folder)
        tokenizer = ChatTokenizer.load(folder)
        tokenizer.check_fits(architecture.vocabulary, source.name)
    draft = request.draft
    return Resolved(
        request=request,
        machine=machine,
        source=source,
        model=model,
        adapter=adapter,
        choice=choice,
        dtype=dtype,
        dtype_reason=dtype_reason,
        quantization=quantization,
        tokenizer=tokenizer,
        job=None if draft is None else draft.complete(architecture.parameters()),
    )


def with_weights(resolved: Resolved, *, download: bool = True) -> Resolved:
    """Download the weights if they are missing, and check names, shapes and types by headers.

    Args:
        resolved: a request's choices.
        download: False leaves out the weights of a hub model that is incomplete in the cache.

    Raises:
        ModelError: the weights are not available, or do not fit the architecture.
    """
    if resolved.weights or not (download or weights_here(resolved.source)):
        return resolved
    model = fetch(resolved.source, download=download)
    source = replace(resolved.source, revision=model.commit or resolved.source.revision)
    return replace(resolved, model=model, source=source, weights=True)


def _model(source: ModelSource, *, download: bool) -> ModelFiles:
    """The base model's config.json, or its published figures where it is not to be downloaded."""
    if source.kind == "hub" and not download:
        architecture = source.architecture(download=False)
        return ModelFiles(
            name=source.name, folder=Path(), commit=None, config={}, architecture=architecture
        )
    return fetch(source, weights=False, download=download)


def _tokenizer_folder(source: ModelSource, *, download: bool) -> Path | None:
    """The folder with the tokenizer; None for a hub model that is not on this machine."""
    if download or source.kind != "hub":
        return fetch_tokenizer(source)
    return tokenizer_here(source)


def _choose(
    request: Request, machine: Machine, architecture: Architecture, origin: Origin
) -> Choice:
    """Choose engine and device, preferring the engine that the adapter was trained on.

    Args:
        request: what was asked for.
        machine: where it is to run.
        architecture: of the base model.
        origin: of the adapter, with the quantization that the base model will have.
    """
    backend, device = request.backend, request.device
    trained_on = origin.backend if origin.quantization != "none" else None
    strict = request.other_engine == "refuse"
    if strict and trained_on is not None and backend not in ("auto", trained_on):
        raise BackendError.at(
            f"backend {backend}",
            f"the adapter was trained on a {origin.quantization} base model of "
            f"`backend={origin.backend}`, whose weights no other engine has",
            f"pass `backend={origin.backend}`, or leave it out",
        )
    try:
        choice = choose_for(machine, backend, device, architecture, origin)
    except BackendError:
        if strict or trained_on is None or architecture.stored is not None:
            raise
        choice = choose(machine, backend, device)
    if trained_on is not None and trained_on != choice.backend:
        log.warning(
            "the adapter was trained on the %s base model of the engine %s; "
            "that of %s differs slightly",
            origin.quantization,
            trained_on,
            choice.backend,
        )
    preferred = request.preferred
    if preferred is not None and backend == "auto" and preferred != choice.backend:
        try:
            choice = choose(machine, preferred, device)
        except BackendError:
            return choice
    if preferred == choice.backend and backend == "auto":
        return replace(choice, reason="the run was last on it")
    return choice


def _asked_by(request: Request, origin: Origin) -> str:
    """Return what requires a quantized base model: a key, an argument or the adapter."""
    if request.quantization is not None or request.adapter is None:
        return request.quantization_key
    return f"adapter {request.adapter}: trained on a {origin.quantization} base model"
