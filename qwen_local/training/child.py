"""The child process of `restart.py`: what its parent passes to it, and its end with the parent.

The child ends when its parent dies, whatever the cause: it holds the read end of a pipe whose only
write end belongs to the parent, and the system closes that. This works on Linux and on macOS.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import dataclass

VARIABLE = "QWEN_LOCAL_CHILD"
"""Environment variable with the fields of `Child` as JSON."""
CRASHED = 70
"""Exit code of a child that ended by an unexpected error (EX_SOFTWARE)."""
GRACE = 60.0
"""Seconds that a child has for its checkpoint after its parent died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """What the parent passes to a training process."""

    pipe: int
    """File descriptor whose other end the parent holds."""
    restarts: int
    """Number of restarts so far."""
    died_of: str | None
    """Cause of death of the process before this one, such as `SIGKILL`; None for the first."""
    micro_batch_tokens: int | None
    """Largest micro-batch budget; None leaves it to the job."""


def this_child() -> Child | None:
    """Return what the parent passed to this process; None if it has no such parent."""
    passed = os.environ.get(VARIABLE)
    return None if passed is None else Child(**json.loads(passed))


def end_with_parent(pipe: int, grace: float = GRACE) -> None:
    """End this process when its parent dies: by SIGTERM, and after `grace` seconds in any case.

    Args:
        pipe: `Child.pipe`.
        grace: time for the checkpoint, in seconds.
    """
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        os.read(pipe, 1)  # nobody writes: this returns when the write end is closed
        # To the main thread, because a signal only interrupts the waiting of its own thread.
        signal.pthread_kill(main, signal.SIGTERM)
        time.sleep(grace)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
