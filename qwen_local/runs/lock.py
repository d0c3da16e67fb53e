"""The lock of a run directory: one process at a time works on a run."""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qwen_local.errors import JobError, RunBusyError
from qwen_local.files import NO_ROOM, json_bytes
from qwen_local.runs.names import RunFiles

log = logging.getLogger("qwen_local")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the lock of an existing run directory. The system releases it if this process dies.

    Raises:
        RunBusyError: another process holds it.
        JobError: the folder is not writable.
        OSError: the disk is full.
    """
    try:
        file = os.open(RunFiles(output).lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        problem = f"{output} cannot be written to: {(error.strerror or str(error)).lower()}"
        raise JobError.at("output", problem, "copy the run to a writable folder") from None
    try:
        try:
            _lock(file)
        except BlockingIOError:
            raise RunBusyError(_busy(output, os.pread(file, 4096, 0))) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            log.info("%s: this file system has no locks; do not start a second process", output)
        now = datetime.datetime.now().astimezone()
        owner = {"pid": os.getpid(), "host": platform.node(), "since": f"{now:%Y-%m-%d %H:%M:%S}"}
        os.ftruncate(file, 0)
        os.pwrite(file, json_bytes(owner), 0)
        yield
    finally:
        os.close(file)


def _lock(file: int) -> None:
    """Lock a file for this process alone.

    Tried for a moment, because a `plan` that looks at the lock holds it as well.
    """
    for _ in range(5):
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.05)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_not_busy(output: Path) -> None:
    """Refuse a run directory that another process works on.

    Raises:
        RunBusyError: another process holds the lock.
        OSError: the lock file cannot be read.
    """
    lock = RunFiles(output).lock
    if os.path.isfile(lock):  # noqa: PTH113 - Path raises for a name that is too long
        with lock.open("rb") as file, suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunBusyError(_busy(output, file.read(4096))) from None


def _busy(output: Path, owner: bytes) -> str:
    """Error message, from the content of the lock file."""
    who = "another process"
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        read = json.loads(owner)
        who = f"process {read['pid']} on {read['host']}, since {read['since']}"
    return f"{output}: the run is in use by {who}\n\nhint: wait for it, or stop it first"
