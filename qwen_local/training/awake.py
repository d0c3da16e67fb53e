"""A Mac that is left alone falls asleep, and its training with it."""

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
    """While this is open, a Mac does not fall asleep for want of input; a closed lid wins.

    A `caffeinate` that is missing or fails is told, and nothing more.

    Args:
        system: `Darwin` for a Mac; on any other nothing is done.
    """
    if system != "Darwin":
        yield
        return
    # -w: it ends with us, whatever kills us. A session of its own: Ctrl+C is for us, and what is
    # saved after it still has to be saved awake.
    command = ["caffeinate", "-i", "-w", str(os.getpid())]
    nowhere = subprocess.DEVNULL
    try:
        child = subprocess.Popen(
            command, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True
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
            log.info("the Mac may have slept meanwhile: caffeinate ended early with code %d", code)
