"""Helpers for files: durable writes, atomic replacement, safetensors."""

from __future__ import annotations

import difflib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_local.errors import DiskFullError

if TYPE_CHECKING:
    import numpy as np

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk or an exhausted quota."""
MAX_WRITE_BYTES = 1 << 30
"""Bytes per `write` call; macOS accepts at most 2 GB."""

NUMPY_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
"""numpy dtype of each safetensors float type that numpy supports."""


def expanded(path: str | Path) -> Path:
    """Expand `~`; unlike `Path.expanduser`, this does not raise for unknown users."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def json_bytes(content: Any) -> bytes:
    """Encode indented JSON with a final newline; NaN and infinity raise an error."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with a final newline."""
    path.write_bytes(json_bytes(content))


def array_bytes(arrays: Mapping[str, np.ndarray], *, made_for: str) -> bytes:
    """Encode a safetensors file.

    Args:
        arrays: arrays by name, with any memory layout.
        made_for: `pt` or `mlx`; the `format` metadata that loaders expect.
    """
    import numpy as np
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(contiguous, metadata={"format": made_for})


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, made_for: str) -> None:
    """Write a safetensors file with default permissions.

    `safetensors.numpy.save_file` creates files that only the owner can read.

    Args:
        path: the file.
        arrays: arrays by name.
        made_for: `pt` or `mlx`; the `format` metadata that loaders expect.
    """
    path.write_bytes(array_bytes(arrays, made_for=made_for))


def readable_by_all(path: Path) -> None:
    """Give a file or folder default permissions, if a library restricted it to the owner."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Create a file and sync its content to disk before returning.

    Raises:
        OSError: the file cannot be written, for example because it exists.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest[:MAX_WRITE_BYTES]) :]
        _sync(file)
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk after creating, renaming or removing files in it.

    For a file, sync its content.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _sync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the file system cannot sync folders
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Sync a folder and everything in it to disk."""
    for path in folder.rglob("*"):
        sync_folder(path)
    sync_folder(folder)


def _sync(file: int) -> None:
    """Sync to disk, and flush the drive's cache if the system supports it (macOS)."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file)


def new_name(name: str) -> str:
    """Return the temporary name of a file that is not complete yet."""
    return f".new-{name}"


def replace_file(path: Path, content: bytes) -> None:
    """Replace or create a file atomically and durably."""
    put_by(path.with_name(new_name(path.name)), path, content)
    sync_folder(path.parent)


def put_by(new: Path, path: Path, content: bytes | memoryview) -> None:
    """Write `new`, in the same folder, and rename it to `path` when it is complete."""
    new.unlink(missing_ok=True)
    try:
        write_durably(new, content)
        new.replace(path)
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


@contextmanager
def room_for(path: Path, needed: int) -> Iterator[None]:
    """Convert a full disk within this context to `DiskFullError`.

    Args:
        path: the file or folder being written.
        needed: required bytes.

    Raises:
        DiskFullError: the disk was full, or the user's quota was exhausted.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise DiskFullError(path, needed, free_bytes(path.parent)) from error


def similar_name(path: Path, pattern: str = "*") -> Path | None:
    """Return what the user may have meant by a path that does not exist: a neighbor of like name.

    Args:
        path: does not exist.
        pattern: of the names that come into question.
    """
    beside: list[str] = []
    with suppress(OSError):
        beside = [other.name for other in path.parent.glob(pattern)]
    close = difflib.get_close_matches(path.name, beside, n=1)
    return path.with_name(close[0]) if close else None


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of this folder, which need not exist yet."""
    here = folder.absolute()
    # os.path.exists: Path raises for a name that is too long and below an unreadable folder
    there = next(path for path in (here, *here.parents) if os.path.exists(path))  # noqa: PTH110
    return shutil.disk_usage(there).free


def array_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array in a safetensors file without reading the arrays.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a safetensors file, or an array is not of floats.
    """
    from safetensors import SafetensorError, safe_open

    shapes = {}
    try:
        with safe_open(path, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a mapping
                held = tensors.get_slice(name)
                _check_floats(name, held.get_dtype())
                shapes[name] = tuple(held.get_shape())
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return shapes


def _check_floats(name: str, dtype: str) -> None:
    if dtype != "BF16" and dtype not in NUMPY_FLOATS:
        raise ValueError(f"{name} has type {dtype}; expected floats")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a safetensors file; see `arrays_of`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a safetensors file, or an array is not of floats.
    """
    return arrays_of(path.read_bytes())


def arrays_of(content: bytes) -> dict[str, np.ndarray]:
    """Decode the arrays of a safetensors file to float32, by name.

    The library validates the bytes, but the numbers are converted here, because numpy has no
    bfloat16 and `safetensors.numpy` cannot return it.

    Raises:
        ValueError: the content is not a safetensors file, or an array is not of floats.
    """
    from safetensors import SafetensorError, deserialize

    try:
        views = deserialize(content)  # type: ignore[no-untyped-call]  # no stub for it
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    arrays = {}
    for name, view in views:
        _check_floats(name, view["dtype"])
        arrays[name] = _floats(view["data"], view["dtype"]).reshape(view["shape"])
    return arrays


def read_rows(path: Path, name: str, rows: slice = slice(None)) -> np.ndarray:
    """Read some rows of an array in a safetensors file as float32.

    The library can slice bfloat16 arrays only for PyTorch.

    Args:
        path: a file that was checked before.
        name: name of a float array, shape [R, ...].
        rows: rows to read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        count, *rest = entry["shape"]
        start, stop, _ = rows.indices(count)
        first, end = entry["data_offsets"]
        width = (end - first) // count
        file.seek(8 + length + first + start * width)
        content = file.read(max(0, stop - start) * width)
    return _floats(content, entry["dtype"]).reshape(-1, *rest)


def _floats(content: bytes, dtype: str) -> np.ndarray:
    """Convert the bytes of an array to a flat float32 array."""
    import numpy as np

    if dtype == "BF16":  # the upper half of a float32
        halves = np.zeros((len(content) // 2, 2), "<u2")
        halves[:, 1] = np.frombuffer(content, "<u2")
        return halves.reshape(-1).view("<f4")
    return np.frombuffer(content, NUMPY_FLOATS[dtype]).astype(np.float32)


def replace_folder(new: Path, target: Path) -> None:
    """Replace the folder `target` by the finished folder `new` beside it.

    If this fails, the target is unchanged. Between the two renames there is briefly no target.
    """
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    old.unlink(missing_ok=True)  # if the target was a file
    try:
        if target.exists():
            target.replace(old)
        new.replace(target)
    finally:
        if old.exists() and not target.exists():
            old.replace(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
