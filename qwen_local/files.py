"""Small habits with files."""

from __future__ import annotations

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
AT_ONCE = 1 << 30
"""Bytes handed to one `write`; macOS takes no more than 2 GB."""

FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
"""Types of safetensors that numpy has, too."""


def expanded(path: str | Path) -> Path:
    """The path with `~` as the home folder; `Path.expanduser` raises for `~nobody`."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def json_bytes(content: Any) -> bytes:
    """Readable JSON with a final newline. JSON has no NaN: a number that is not finite is a bug."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: Any) -> None:
    """Readable JSON with a final newline."""
    path.write_bytes(json_bytes(content))


def array_bytes(arrays: Mapping[str, np.ndarray], *, made_for: str) -> bytes:
    """The content of a safetensors file.

    Args:
        arrays: by name, of any layout in memory.
        made_for: `pt` or `mlx`, the `format` that loaders look for.
    """
    import numpy as np
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(contiguous, metadata={"format": made_for})


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, made_for: str) -> None:
    """A safetensors file that whoever may read the folder may read.

    `safetensors.numpy.save_file` would leave it readable by its owner alone.

    Args:
        path: the file.
        arrays: by name.
        made_for: `pt` or `mlx`, the `format` that loaders look for.
    """
    path.write_bytes(array_bytes(arrays, made_for=made_for))


def readable_by_all(path: Path) -> None:
    """Give a file or folder the rights that a new one has, where a library kept it to its owner."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Make a new file; its content is on the disk when this returns.

    Raises:
        OSError: among others, that the file is there already.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest[:AT_ONCE]) :]
        _sync(file)
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: what was made, renamed or removed in it.

    Of a file, its content.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _sync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system whose folders cannot be synced
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Bring everything in a folder to the disk, and the folder itself."""
    for path in folder.rglob("*"):
        sync_folder(path)
    sync_folder(folder)


def _sync(file: int) -> None:
    """Through the drive's own cache too, where the system has a call for that (macOS)."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file)


def new_name(name: str) -> str:
    """How a file is called, beside its place, until it is whole."""
    return f".new-{name}"


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in the place of another, or of none: whatever happens, one of them is there."""
    put_by(path.with_name(new_name(path.name)), path, content)
    sync_folder(path.parent)


def put_by(new: Path, path: Path, content: bytes | memoryview) -> None:
    """Write a file under another name in the same folder, and give it its own once it is whole."""
    new.unlink(missing_ok=True)
    try:
        write_durably(new, content)
        new.replace(path)
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


@contextmanager
def room_for(path: Path, needed: int) -> Iterator[None]:
    """Turns a full disk into the error that says what is needed.

    Args:
        path: what is being written.
        needed: bytes.

    Raises:
        DiskFullError: the disk, or the user's share of it, was full within the `with`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise DiskFullError(path, needed, free_bytes(path.parent)) from error


def free_bytes(folder: Path) -> int:
    """Room where this folder is or will be."""
    here = folder.absolute()
    return shutil.disk_usage(next(path for path in (here, *here.parents) if path.exists())).free


def array_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays of a safetensors file; no array is read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file, or holds arrays that are not of floats.
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
    if dtype != "BF16" and dtype not in FLOATS:
        raise ValueError(f"{name} is of type {dtype}; expected floats")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file: see `arrays_of`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file, or holds arrays that are not of floats.
    """
    return arrays_of(path.read_bytes())


def arrays_of(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as float32, by name.

    Read by hand from the bytes that the library has checked, because numpy has no bfloat16 and
    `safetensors.numpy` therefore cannot give it.

    Raises:
        ValueError: it is no safetensors file, or holds arrays that are not of floats.
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
    """Some rows of an array of a safetensors file as float32; the rest stays on the disk.

    The library has a slice of bfloat16 for PyTorch alone.

    Args:
        path: a file that was checked.
        name: of floats, [R, ...].
        rows: which.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        count, *rest = entry["shape"]
        start, stop, _ = rows.indices(count)
        begin, end = entry["data_offsets"]
        width = (end - begin) // count
        file.seek(8 + length + begin + start * width)
        content = file.read(max(0, stop - start) * width)
    return _floats(content, entry["dtype"]).reshape(-1, *rest)


def _floats(content: bytes, dtype: str) -> np.ndarray:
    """Numbers of a safetensors file as float32, without their shape."""
    import numpy as np

    if dtype == "BF16":  # the upper half of a float32
        halves = np.zeros((len(content) // 2, 2), "<u2")
        halves[:, 1] = np.frombuffer(content, "<u2")
        return halves.reshape(-1).view("<f4")
    return np.frombuffer(content, FLOATS[dtype]).astype(np.float32)


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder `new` in the place of `target`; both lie beside each other.

    Where it fails, the target is what it was. Between the two renames there is for an instant none.
    """
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    old.unlink(missing_ok=True)  # where the target was a file
    try:
        if target.exists():
            target.replace(old)
        new.replace(target)
    finally:
        if old.exists() and not target.exists():
            old.replace(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
