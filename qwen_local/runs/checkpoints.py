"""Checkpoints on disk: a folder of files that is either complete or not there.

A checkpoint is written to a hidden sibling (`.new-step-000050`): each file, then COMPLETE.json with
sizes and SHA-256 of the others. All are flushed to the disk and read back before the folder is
renamed. A loader takes only what verifies. If the process or the machine dies at any instant, the
parent folder yields the previous state or the new one. This holds on a local disk; a network disk
may guarantee less about renames.

The run's lock (`lock.py`) ensures that one process writes at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qwen_local.files import json_bytes, room_for, sync_folder, write_durably

log = logging.getLogger("qwen_local")

T = TypeVar("T")

COMPLETE = "COMPLETE.json"
SCHEMA = 1
STEP = re.compile(r"step-(\d{6,9})", re.ASCII)
NEW, OLD, DAMAGED = ".new-", ".old-", ".damaged-"
"""Prefixes: being written; being removed; damaged, left for the user to inspect and never read."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Reason why a checkpoint cannot be loaded."""

    folder: Path
    problem: str
    """Names the file."""


class DamagedError(Exception):
    """A checkpoint does not match its COMPLETE.json. The argument names the file."""


def step_name(step: int) -> str:
    """Folder name of a checkpoint.

    >>> step_name(50)
    'step-000050'
    """
    return f"step-{step:06d}"


def steps_in(root: Path) -> list[int]:
    """Steps that have a checkpoint here, good or damaged, newest first."""
    if not root.is_dir():
        return []
    found = (STEP.fullmatch(path.name) for path in root.iterdir() if _is_folder(path))
    steps = (int(match[1]) for match in found if match and step_name(int(match[1])) == match[0])
    return sorted(steps, reverse=True)


def save(root: Path, step: int, files: Mapping[str, bytes]) -> Path:
    """Write a checkpoint, replacing one of the same step if there is one.

    Args:
        root: parent folder of all checkpoints; created if missing.
        step: optimizer steps done.
        files: contents by plain file name.

    Returns:
        Folder of the checkpoint.

    Raises:
        DiskFullError: the disk is full. Earlier checkpoints are unchanged.
        OSError: another failure to write, or it reads back differently; likewise.
    """
    marker = json_bytes(
        {
            "schema": SCHEMA,
            "step": step,
            "files": {
                name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for name, content in files.items()
            },
        }
    )
    needed = sum(map(len, files.values())) + len(marker)
    if not root.is_dir():
        with room_for(root, needed):
            root.mkdir()
            sync_folder(root.parent)
    target = root / step_name(step)
    new, old = root / f"{NEW}{target.name}", root / f"{OLD}{target.name}"
    _remove(new)
    _remove(old)
    try:
        with room_for(target, needed):
            new.mkdir()
            for name, content in files.items():
                write_durably(new / name, content)
            write_durably(new / COMPLETE, marker)
            sync_folder(new)
            _verify(new)
            if target.exists():
                os.replace(target, old)  # noqa: PTH105 - intercepted by tests
            os.replace(new, target)  # noqa: PTH105
            sync_folder(root)
    except DamagedError as error:
        raise OSError(f"{new}: reads back differently than it was written: {error}") from error
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)  # noqa: PTH105
        with suppress(OSError):
            _remove(new)
    _remove_quietly(old)
    return target


def read(folder: Path) -> dict[str, bytes]:
    """Read and verify the files of a checkpoint, by name.

    Raises:
        DamagedError: a file is missing, truncated or changed; the error names it.
    """
    contents = {}
    for name, expected in _marker(folder).items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise DamagedError(f"{name}: {(error.strerror or str(error)).lower()}") from error
        _check(name, expected, len(content), hashlib.sha256(content).hexdigest())
        contents[name] = content
    return contents


def recover(root: Path) -> None:
    """Finish or remove what a process that died left half done."""
    if not root.is_dir():
        return
    for prefix in (NEW, OLD):  # of two complete ones, the newer wins
        for left in sorted(root.glob(f"{prefix}step-*")):
            target = root / left.name.removeprefix(prefix)
            if not target.exists() and _is_folder(left) and _is_good(left):
                os.replace(left, target)  # noqa: PTH105
                sync_folder(root)
            else:
                _remove_quietly(left)


def newest(
    root: Path, decode: Callable[[dict[str, bytes]], T]
) -> tuple[int, T, list[Damage]] | None:
    """Load the newest good checkpoint: (step, content, newer ones that are damaged).

    Returns None without any checkpoint.

    Args:
        root: parent folder of all checkpoints.
        decode: from files to content; raises DamagedError if they are not a checkpoint.

    Raises:
        DamagedError: every checkpoint is damaged; the error names each.
    """
    damages: list[Damage] = []
    for step in steps_in(root):
        folder = root / step_name(step)
        try:
            return step, decode(read(folder)), damages
        except DamagedError as error:
            damages.append(Damage(folder, str(error)))
    if damages:
        raise DamagedError("; ".join(f"{d.folder.name}/{d.problem}" for d in damages))
    return None


def keep_only(root: Path, steps: Collection[int]) -> None:
    """Remove all other checkpoints. One that cannot be removed is logged and stays."""
    for step in steps_in(root):
        if step not in steps:
            discard(root, step)


def discard(root: Path, step: int) -> None:
    """Remove a checkpoint. It is renamed first, so it is gone at once. Errors are logged."""
    folder, old = root / step_name(step), root / f"{OLD}{step_name(step)}"
    try:
        _remove(old)
        os.replace(folder, old)  # noqa: PTH105
    except OSError as error:
        log.info("checkpoint %s cannot be removed: %s", folder, error.strerror)
        return
    _remove_quietly(old)


def set_aside(root: Path, damages: Iterable[Damage]) -> None:
    """Rename damaged checkpoints, so that no later run loads them."""
    for damage in damages:
        aside = damage.folder.with_name(f"{DAMAGED}{damage.folder.name}")
        _remove(aside)
        os.replace(damage.folder, aside)  # noqa: PTH105
    sync_folder(root)


def _marker(folder: Path) -> dict[str, Any]:
    """Return size and SHA-256 by file name, from COMPLETE.json."""
    try:
        marker = json.loads((folder / COMPLETE).read_bytes())
        if marker["schema"] != SCHEMA:
            problem = f"schema {marker['schema']!r} is not {SCHEMA}, which this version reads"
            raise DamagedError(f"{COMPLETE}: {problem}")
        if not folder.name.endswith(step_name(int(marker["step"]))):
            raise DamagedError(f"{COMPLETE}: is for step {marker['step']}, not for this folder")
        files = {str(name): dict(expected) for name, expected in marker["files"].items()}
        if any(Path(name).name != name for name in files):
            raise DamagedError(f"{COMPLETE}: lists a file in another folder")
    except OSError as error:
        raise DamagedError(f"{COMPLETE}: {(error.strerror or str(error)).lower()}") from error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(f"{COMPLETE}: not readable") from error
    return files


def _verify(folder: Path) -> None:
    """As `read`, without keeping the contents in memory."""
    for name, expected in _marker(folder).items():
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            _check(name, expected, file.tell(), digest)


def _check(name: str, expected: Mapping[str, Any], size: int, sha256: str) -> None:
    if size != expected.get("size"):
        raise DamagedError(f"{name}: expected {expected.get('size')} bytes; found {size}")
    if sha256 != expected.get("sha256"):
        raise DamagedError(f"{name}: its SHA-256 differs from the recorded one")


def _is_good(folder: Path) -> bool:
    try:
        _verify(folder)
    except (DamagedError, OSError):
        return False
    return True


def _is_folder(path: Path) -> bool:
    """True for a folder, but not for a link to one: what it points to is not ours to remove."""
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    """Remove a folder, or a link but not its target; do nothing if the path does not exist."""
    if _is_folder(path):
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def _remove_quietly(path: Path) -> None:
    """As `_remove`, but log errors: the next start tries again."""
    try:
        _remove(path)
    except OSError as error:
        log.info("%s cannot be removed: %s", path, error.strerror)
