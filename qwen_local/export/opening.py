"""The first steps of every export: open the adapter and its base model, and make a folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from qwen_local.adapters.lora import Origin
from qwen_local.backends.probe import probe
from qwen_local.backends.select import ENGINES
from qwen_local.errors import Fault, InputError, ModelError, RunBusyError
from qwen_local.export.merge import ExportError
from qwen_local.files import expanded, free_bytes, readable_by_all
from qwen_local.job.schema import Quantization
from qwen_local.models.architecture import Architecture
from qwen_local.resolve.request import Request
from qwen_local.resolve.resolve import Resolved, resolve, with_weights
from qwen_local.runs.directory import check_free
from qwen_local.runs.run import is_run

log = logging.getLogger("qwen_local")

DISK_ERRORS = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""`errno` of a disk that is full or fails; None if a library reports no number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """An adapter to export, and the folder to make."""

    adapter: Path
    """Folder of a run or of an adapter."""
    output: Path
    """New folder."""
    model: str | None = None
    """Base model; None for the one that the adapter names."""
    revision: str | None = None
    """Revision of a hub model; None for the commit that the adapter was trained on, if known."""
    quantization: Quantization | None = None
    """Quantization of the base model during training; None for the recorded one."""
    backend: str = "auto"
    """`auto` is the engine that trained on a quantized base model, otherwise that of `select`."""
    device: str = "auto"
    """`auto`, `gpu` or `cpu`."""


def open_export(request: ExportRequest, *, dora: bool = True) -> Resolved:
    """Open the adapter and its base model, and choose the engine.

    Args:
        request: the adapter and the options of the export.
        dora: True if the target can hold DoRA magnitudes.

    Raises:
        InputError: something cannot be used; nothing was written.
    """
    _check_names(request)
    output = expanded(request.output)
    if is_run(output):
        raise InputError.at("output", f"{output} is a run", "choose another folder with `output`")
    check_free(output)
    to_resolve = Request(
        model=request.model,
        revision=request.revision,
        adapter=request.adapter,
        backend=request.backend,
        device=request.device,
        quantization=request.quantization,
        other_engine="refuse",
    )
    resolved = resolve(to_resolve, probe())
    adapter = resolved.known_adapter
    origin = adapter.origin
    if resolved.quantization != origin.quantization and origin != Origin():
        log.warning(
            "the adapter was trained on a base model with quantization %s; it is exported with %s",
            origin.quantization,
            resolved.quantization,
        )
    if adapter.dora and not dora:
        problem = "has DoRA magnitudes, which llama.cpp does not support"
        raise ModelError.at("adapter", problem, "merge it: `qwen-local export --to gguf`")
    choice = resolved.choice
    log.info("engine: %s on the %s (%s)", ENGINES[choice.backend], choice.device, choice.reason)
    return with_weights(resolved)


def _check_names(request: ExportRequest) -> None:
    """Check that JSON can hold the names of the adapter and of the output.

    Raises:
        InputError: a name is not UTF-8; both are reported together.
    """
    faults = []
    for key, path in (("adapter", request.adapter), ("output", request.output)):
        try:
            str(path).encode()
        except UnicodeEncodeError:
            problem = f"its name is not UTF-8: {str(path)!r}"
            faults.append(Fault(key, problem, "rename it"))
    if faults:
        raise InputError(faults)


def check_disk(output: Path, need: int, architecture: Architecture) -> None:
    """Check that the disk has room for an export.

    Args:
        output: the folder to make.
        need: bytes of its files.
        architecture: of the base model, one block of which is on disk in float32 for a moment.

    Raises:
        ExportError: the disk has too little free space.
    """
    need += 4 * sum(map(math.prod, architecture.linear_shapes().values()))
    if (free := free_bytes(output)) < need:
        raise ExportError(
            f"{output}: the export needs {need / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free"
            "\n\nhint: make room, or choose another disk with `output`"
        )


def output_path(output: Path) -> Path:
    """Return the real path of an output: a link to an empty folder stays a link."""
    return Path(os.path.realpath(expanded(output)))


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Create a folder beside `output` and move it there, unless an error ends the `with`.

    Files left there by a process that was killed are removed.

    Yields:
        The folder to write into.

    Raises:
        RunBusyError: another process writes the same output.
        ExportError: the disk is full or fails.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    new = output.with_name(f".new-{output.name}")
    with _locked_folder(new, output):
        try:
            yield new
            check_free(output)  # again: something may have been written there meanwhile
            readable_by_all(new)
            new.replace(output)  # replaces an empty folder
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) not in DISK_ERRORS:
                raise
            reason = getattr(error, "strerror", None) or error
            raise ExportError(
                f"{output.parent}: cannot be written: {reason}"
                "\n\nhint: make room, or choose another disk with `output`"
            ) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)


@contextmanager
def _locked_folder(new: Path, output: Path) -> Iterator[None]:
    """Create and lock an empty folder for the duration of the `with`; it may be moved meanwhile."""
    while True:
        new.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(new, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            problem = "another process is writing it"
            raise RunBusyError(
                f"{output}: {problem}\n\nhint: wait for it, or stop it first"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks
                os.close(handle)
                raise
        if new.exists() and os.path.samestat(os.fstat(handle), new.stat()):
            break
        os.close(handle)  # another process has moved the folder to its output: make a new one
    try:
        for left in new.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        os.close(handle)


@contextmanager
def scratch_folder(new: Path) -> Iterator[Path]:
    """Create a temporary folder on the disk of the export, and remove it at the end."""
    folder = new / ".scratch"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
