"""What every export begins with: the adapter, its base, the engine, and what to measure on."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_local.adapters.lora import Adapter, Origin
from qwen_local.adapters.store import base_of, load_adapter, named_base
from qwen_local.backends.quantisation import check_quantization, choose_for, who_asks
from qwen_local.backends.select import ENGINES, Choice, Machine, probe
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import BackendError, ModelError
from qwen_local.export.merge import ExportError
from qwen_local.files import free_bytes, readable_by_all
from qwen_local.job import Quantization
from qwen_local.models.architecture import Architecture
from qwen_local.models.source import ModelFiles, ModelSource, fetch
from qwen_local.training.run_directory import check_free

log = logging.getLogger("qwen_local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What a command was told of an export."""

    adapter: Path
    """A run, or an adapter's folder."""
    output: Path
    """The folder to make."""
    model: str | None = None
    """The base; None takes the one that the adapter names."""
    revision: str | None = None
    """Of a hub model; None takes the commit that it was trained on, where known."""
    quantization: Quantization | None = None
    """What the base was held in while the adapter was trained; None as recorded."""
    backend: str = "auto"
    """`auto` takes the engine that trained on a quantised base, else as `select`."""
    device: str = "auto"
    """`auto`, `gpu` or `cpu`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """The same, found and checked."""

    adapter: Adapter
    source: ModelSource
    """Where the base comes from."""
    base: ModelFiles
    held: Quantization
    """What the base was held in while the adapter was trained."""
    machine: Machine
    choice: Choice
    tokenizer: ChatTokenizer

    @property
    def rounds_inputs(self) -> bool:
        """Whether live layers round what goes into them, as LLM.int8() does and no merged one."""
        stored = self.base.architecture.stored
        return self.choice.backend == "cuda" and (
            self.held == "8bit" or (stored is not None and stored.bits == 8)
        )


def open_export(given: Given, *, dora: bool = True) -> Opened:
    """Find and check all that an export needs.

    Args:
        given: see `Given`.
        dora: whether what is made can hold the magnitudes of one.

    Raises:
        InputError: something cannot be used as given; nothing was written.
    """
    check_free(_expanded(given.output))
    machine = probe()
    named, origin = named_base(given.adapter)
    source = base_of(given.model, given.revision, given.adapter)
    architecture = source.architecture(download=True)
    held = origin.quantization if given.quantization is None else given.quantization
    choice = _choose(machine, given, architecture, replace(origin, quantization=held))
    asked_by = who_asks(given.quantization, given.adapter, origin)
    check_quantization(machine, choice, source.name, architecture, held, asked_by=asked_by)
    adapter = load_adapter(given.adapter, architecture)
    if adapter.dora and not dora:
        problem = "has the magnitudes of DoRA, which llama.cpp has no place for"
        raise ModelError.at("--adapter", problem, "merge it: export --to gguf")
    if named not in ("", source.name):
        log.warning("the adapter was made for %s; this is %s", named, source.name)
    files = fetch(source)
    tokenizer = ChatTokenizer.load(files.folder)
    tokenizer.check_fits(architecture.vocabulary, source.name)
    log.info("engine: %s on the %s (%s)", ENGINES[choice.backend], choice.device, choice.reason)
    return Opened(
        adapter=adapter,
        source=source,
        base=files,
        held=held,
        machine=machine,
        choice=choice,
        tokenizer=tokenizer,
    )


def _choose(machine: Machine, given: Given, architecture: Architecture, origin: Origin) -> Choice:
    """The engine: where the base was quantised the one that did it, whose codes are its own."""
    if origin.quantization != "none" and given.backend not in (
        "auto",
        origin.backend or given.backend,
    ):
        raise BackendError.at(
            f"--backend {given.backend}",
            f"the adapter was trained on a {origin.quantization} base of --backend "
            f"{origin.backend}, whose weights no other engine has",
            f"pass --backend {origin.backend}, or leave it out",
        )
    return choose_for(machine, given.backend, given.device, architecture, origin)


def check_disk(output: Path, need: int) -> None:
    """Refuse a disk without room.

    Args:
        output: what will be made.
        need: bytes.

    Raises:
        ExportError: how much is missing.
    """
    if (free := free_bytes(output)) < need:
        raise ExportError(
            f"{output}: the export needs {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        )


def place_of(output: Path) -> Path:
    """Where an output goes: a link to an empty folder stays a link."""
    return Path(os.path.realpath(_expanded(output)))


def _expanded(output: Path) -> Path:
    return Path(os.path.expanduser(output))  # noqa: PTH111 - Path raises for `~nobody`


@contextmanager
def to_be(output: Path) -> Iterator[Path]:
    """A new folder beside `output`, which takes its place unless an error ends the `with`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=output.parent))
    try:
        yield new
        check_free(output)  # meanwhile, too
        readable_by_all(new)
        new.replace(output)  # an empty folder gives way
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def scratch_beside(new: Path) -> Iterator[Path]:
    """A folder for what is needed for a moment, on the disk of the export."""
    folder = Path(tempfile.mkdtemp(prefix=".scratch-", dir=new.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
