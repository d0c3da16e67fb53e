"""Keeps a Mac from falling asleep while it trains."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("qwen_local")

ASLEEP = "the Mac may fall asleep while it trains"


@contextmanager
def keep_awake(system: str) -> Iterator[None]:
    """Keep a Mac awake within the `with`, unless its lid is closed.

    A `caffeinate` that is missing or fails is logged, and nothing more.

    Args:
        system: `Darwin` for a Mac; nothing is done on other systems.
    """
    if system != "Darwin":
        yield
        return
    # -w: it ends with this process, even if that is killed. In a session of its own it does not get
    # Ctrl+C, so that the Mac is still awake while the last checkpoint is saved.
    command = ["caffeinate", "-i", "-w", str(os.getpid())]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        log.info("%s: caffeinate cannot be started (%s)", ASLEEP, error.strerror)
        yield
        return
    try:
        yield
    finally:
        if (code := child.poll()) is None:
            child.terminate()
            child.wait()
        else:
            log.info("the Mac may have slept: caffeinate ended early with code %d", code)
