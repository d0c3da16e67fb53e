"""What every export begins with: the adapter, its base, the engine, and what to measure on."""

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
from qwen_local.backends.select import ENGINES, probe
from qwen_local.errors import Fault, InputError, ModelError, RunBusyError
from qwen_local.export.merge import ExportError
from qwen_local.files import expanded, free_bytes, readable_by_all
from qwen_local.job.schema import Quantization
from qwen_local.models.architecture import Architecture
from qwen_local.resolve.request import Request
from qwen_local.resolve.resolve import Resolved, resolve, with_weights
from qwen_local.runs.directory import check_free

log = logging.getLogger("qwen_local")

DISK = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a disk; None where a library says it in words alone."""


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
    """`auto` takes the engine that trained on a quantized base, else as `select`."""
    device: str = "auto"
    """`auto`, `gpu` or `cpu`."""


def open_export(given: Given, *, dora: bool = True) -> Resolved:
    """Find and check all that an export needs.

    Args:
        given: see `Given`.
        dora: whether what is made can hold the magnitudes of one.

    Raises:
        InputError: something cannot be used as given; nothing was written.
    """
    _check_names(given)
    check_free(expanded(given.output))
    request = Request(
        model=given.model,
        revision=given.revision,
        adapter=given.adapter,
        backend=given.backend,
        device=given.device,
        quantization=given.quantization,
        other_engine="refuse",
    )
    resolved = resolve(request, probe())
    adapter = resolved.known_adapter
    origin = adapter.origin
    if resolved.quantization != origin.quantization and origin != Origin():
        log.warning(
            "the adapter was trained on a base held in %s; --quantization takes it as if in %s",
            origin.quantization,
            resolved.quantization,
        )
    if adapter.dora and not dora:
        problem = "has the magnitudes of DoRA, which llama.cpp has no place for"
        raise ModelError.at("--adapter", problem, "merge it: export --to gguf")
    choice = resolved.choice
    log.info("engine: %s on the %s (%s)", ENGINES[choice.backend], choice.device, choice.reason)
    return with_weights(resolved)


def _check_names(given: Given) -> None:
    """Refuse names that could not be written into JSON.

    Raises:
        InputError: both at once.
    """
    faults = []
    for flag, path in (("--adapter", given.adapter), ("--output", given.output)):
        try:
            str(path).encode()
        except UnicodeEncodeError:
            problem = f"its name is not UTF-8: {str(path)!r}"
            faults.append(Fault(flag, problem, "rename it"))
    if faults:
        raise InputError(faults)


def check_disk(output: Path, need: int, architecture: Architecture) -> None:
    """Refuse a disk without room.

    Args:
        output: what will be made.
        need: its bytes.
        architecture: of the base, one block of which is there in float32 for a moment.

    Raises:
        ExportError: how much is missing.
    """
    need += 4 * sum(map(math.prod, architecture.linear_shapes().values()))
    if (free := free_bytes(output)) < need:
        raise ExportError(
            f"{output}: the export needs {need / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free"
            "\n\nhint: make room, or choose another disk with --output"
        )


def place_of(output: Path) -> Path:
    """Where an output goes: a link to an empty folder stays a link."""
    return Path(os.path.realpath(expanded(output)))


@contextmanager
def to_be(output: Path) -> Iterator[Path]:
    """A new folder beside `output`, which takes its place unless an error ends the `with`.

    What a process that was killed left there is cleared away.

    Raises:
        RunBusyError: another process makes the same output.
        ExportError: the disk is full, or will not take it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    new = output.with_name(f".new-{output.name}")
    with _alone(new, output):
        try:
            yield new
            check_free(output)  # meanwhile, too
            readable_by_all(new)
            new.replace(output)  # an empty folder gives way
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) not in DISK:
                raise
            said = getattr(error, "strerror", None) or error
            raise ExportError(
                f"{output.parent}: cannot be written: {said}"
                "\n\nhint: make room, or choose another disk with --output"
            ) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)


@contextmanager
def _alone(new: Path, output: Path) -> Iterator[None]:
    """Hold an empty folder for as long as the `with`; it may move meanwhile."""
    while True:
        new.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(new, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            problem = "another process is making it"
            raise RunBusyError(
                f"{output}: {problem}\n\nhint: wait for it, or stop it first"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks
                os.close(handle)
                raise
        if new.exists() and os.path.samestat(os.fstat(handle), new.stat()):
            break
        os.close(handle)  # another finished in between, and it moved to its place
    try:
        for left in new.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        os.close(handle)


@contextmanager
def scratch_in(new: Path) -> Iterator[Path]:
    """A folder for what is needed for a moment, on the disk of the export."""
    folder = new / ".scratch"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
