"""File operations below a folder, counted, and one of them made to go wrong.

For tests of what a process leaves behind that dies, or that the disk fails, in the midst of
writing. Nothing of it is in the package: a `with` replaces the functions of `os` and `io.open`.
What is written through a C library's own files is not seen.

No operation waits for the disk: without a power cut a written byte is there for whoever reads next.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import shutil  # noqa: F401  # decides how it removes folders when it is imported: before we change os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

T = TypeVar("T")
FAULTS = ("kill before", "kill after", "ENOSPC", "EIO", "short write", "torn write")
"""Killed right before or after; failed with this error, once; half written, and going on or
killed."""
KILLS = ("kill before", "kill after", "torn write")
OF_WRITES = ("short write", "torn write")
ONE_PATH = ("chmod", "mkdir", "remove", "rmdir", "truncate", "unlink")
TWO_PATHS = ("link", "rename", "replace")
ONE_FILE = ("close", "fdatasync", "fsync", "ftruncate", "pwrite", "write")
SYNCS = ("fdatasync", "fsync")


POWER_CUT = "power cut"
"""A death that this process survives, so that it can tell what the disk would have lost."""


class PowerCut(BaseException):
    """Nothing is done to the disk any more, by no `finally` either."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call that could change what is on the disk, or fail."""

    name: str
    """Of the function; `read` is opening something to read it."""
    path: str
    """Below the folder that is watched; for a rename, what it is renamed to."""
    source: str | None = None
    """For a rename, what is renamed."""


@dataclass(kw_only=True)
class Faults:
    """Watches a folder within a `with`.

    Args:
        root: the folder; it need not be there.
        at: the operation that goes wrong, 0 being the first; None for none.
        fault: how, one of `FAULTS` or `POWER_CUT`. One of `OF_WRITES` leaves alone what is no
            write.
    """

    root: Path
    at: int | None = None
    fault: str = "kill before"
    operations: list[Operation] = field(default_factory=list)
    """So far, in order."""
    _dead: bool = False
    _files: dict[int, str] = field(default_factory=dict)
    """Paths of open files, by their number."""
    _before: list[tuple[Any, str, Any]] = field(default_factory=list)
    """What was replaced: module, name, function."""

    def __post_init__(self) -> None:
        self._real = {name: getattr(os, name) for name in (*ONE_PATH, *TWO_PATHS, *ONE_FILE)}
        self._real_os_open, self._real_io_open = os.open, io.open
        self._real_fcntl = fcntl.fcntl
        self._below = os.path.join(os.path.abspath(self.root), "")  # noqa: PTH100, PTH118

    def __enter__(self) -> Self:
        replaced: list[tuple[Any, str, Callable[..., Any]]] = [
            (os, "open", self._open_file),
            (io, "open", self._open_stream),
            (builtins, "open", self._open_stream),
            (fcntl, "fcntl", self._fcntl),
            *((os, name, self._of_path(name)) for name in ONE_PATH),
            *((os, name, self._of_paths(name)) for name in TWO_PATHS),
            *((os, name, self._of_file(name)) for name in ONE_FILE),
        ]
        for module, name, function in replaced:
            self._before.append((module, name, getattr(module, name)))
            setattr(module, name, function)
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            setattr(*self._before.pop())

    def happens(self, operation: Operation, do: Callable[[], T]) -> T:
        """Count an operation and do it, unless it is the one that goes wrong."""
        self.operations.append(operation)
        self._dead |= self.fault == POWER_CUT and len(self.operations) - 1 == self.at
        if self._dead:
            raise PowerCut
        if len(self.operations) - 1 != self.at or self.fault in OF_WRITES:
            return do()
        if self.fault in ("ENOSPC", "EIO"):
            if operation.name == "close":  # a file is closed, whatever closing it told
                do()
            number = getattr(errno, self.fault)
            raise OSError(number, os.strerror(number), operation.path)
        try:
            if self.fault == "kill after":
                do()
        finally:
            die()

    def writes(self, path: str, content: Any, do: Callable[[Any], int]) -> int:
        """The same for a write, which can also be done by half."""
        operation = Operation("write", path)
        if len(self.operations) == self.at and self.fault in OF_WRITES:
            self.operations.append(operation)
            with memoryview(content) as whole:
                written = do(whole[: (len(whole) + 1) // 2])
            if self.fault == "torn write":
                die()
            return written
        return self.happens(operation, lambda: do(content))

    def watch(self, file: int, path: str) -> None:
        """Note that this number is now an open file of that path."""
        self._files[file] = path

    def forget(self, file: int) -> None:
        """Note that it is closed."""
        self._files.pop(file, None)

    def _path(self, path: Any, folder: int | None = None) -> str | None:
        """Below the root, or None where it is elsewhere. `folder` is an open one, as for openat."""
        if isinstance(path, int):
            return self._files.get(path)
        name = os.fsdecode(path)
        if folder is not None:
            if folder not in self._files:
                return None
            name = os.path.join(self._below, self._files[folder], name)  # noqa: PTH118
        name = os.path.abspath(name)  # noqa: PTH100 - what a link leads to is not asked
        if os.path.join(name, "") == self._below:  # noqa: PTH118
            return "."
        return name.removeprefix(self._below) if name.startswith(self._below) else None

    def _of_path(self, name: str) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **named: Any) -> Any:
            below = self._path(path, named.get("dir_fd"))
            if below is None:
                return self._real[name](path, *args, **named)
            return self.happens(
                Operation(name, below), lambda: self._real[name](path, *args, **named)
            )

        return call

    def _of_paths(self, name: str) -> Callable[..., Any]:
        def call(source: Any, path: Any, **named: Any) -> Any:
            was = self._path(source, named.get("src_dir_fd"))
            below = self._path(path, named.get("dst_dir_fd"))
            if was is None and below is None:
                return self._real[name](source, path, **named)
            return self.happens(
                Operation(name, below or os.fsdecode(path), was or os.fsdecode(source)),
                lambda: self._real[name](source, path, **named),
            )

        return call

    def _of_file(self, name: str) -> Callable[..., Any]:
        def call(file: Any, *args: Any) -> Any:
            below = self._path(file)
            if below is None:
                return self._real[name](file, *args)
            if name == "write":
                return self.writes(below, args[0], lambda part: self._real[name](file, part))
            if name == "close":
                self.forget(file)
            if name in SYNCS:
                return self.happens(Operation("fsync", below), lambda: None)
            return self.happens(Operation(name, below), lambda: self._real[name](file, *args))

        return call

    def _open_file(self, path: Any, *args: Any, **named: Any) -> int:
        below = self._path(path, named.get("dir_fd"))
        if below is None:
            return int(self._real_os_open(path, *args, **named))
        flags = args[0] if args else named["flags"]
        name = "open" if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else "read"
        opened: int = self.happens(
            Operation(name, below), lambda: self._real_os_open(path, *args, **named)
        )
        self.watch(opened, below)
        return opened

    def _open_stream(self, file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        below = None if isinstance(file, int) else self._path(file)
        if below is None:
            return self._real_io_open(file, mode, *args, **named)
        if not set(mode) & set("wax+"):
            return self.happens(
                Operation("read", below), lambda: self._real_io_open(file, mode, *args, **named)
            )
        raw = self.happens(
            Operation("open", below), lambda: _Raw(self, os.fspath(file), mode, below)
        )
        options = dict(zip(("buffering", "encoding", "errors", "newline"), args, strict=False))
        options.update(named)
        if options.pop("buffering", -1) == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, **options)

    def _fcntl(self, file: Any, command: int, *args: Any) -> Any:
        """macOS brings a file to the disk by a command of its own."""
        below = self._path(file) if isinstance(file, int) else None
        if below is None or command != getattr(fcntl, "F_FULLFSYNC", None):
            return self._real_fcntl(file, command, *args)
        return self.happens(Operation("fsync", below), lambda: 0)


class _Raw(io.FileIO):
    """A file opened by `open`: its writes, as its buffer hands them down, are operations."""

    def __init__(self, faults: Faults, file: str, mode: str, below: str) -> None:
        super().__init__(file, mode.replace("b", "").replace("t", ""))
        self._faults, self._below = faults, below
        self._number = self.fileno()
        faults.watch(self._number, below)

    def write(self, content: Any) -> int:
        return self._faults.writes(self._below, content, super().write)

    def truncate(self, size: int | None = None) -> int:
        return self._faults.happens(
            Operation("ftruncate", self._below), lambda: super(_Raw, self).truncate(size)
        )

    def close(self) -> None:
        if not self.closed:
            self._faults.forget(self._number)
        super().close()


def die() -> NoReturn:
    """As a process dies that is killed: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
    while True:  # until the signal is there
        signal.pause()
