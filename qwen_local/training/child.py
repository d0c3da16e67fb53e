"""The child of a supervised training (`supervise.py`): what it was told, and that it ends in time.

It ends with its parent, however that dies: it holds the read end of a pipe whose only write end the
parent has, and the system closes that one for it. This works on Linux and on macOS.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import dataclass

VARIABLE = "QWEN_LOCAL_SUPERVISED"
"""Of the environment: what a child is told, as JSON."""
CRASHED = 70
"""Exit code of a child that ended by an error which is no message of ours (EX_SOFTWARE)."""
GRACE = 60.0
"""Seconds that a child has for its checkpoint after its parent died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Supervised:
    """What a child is told."""

    pipe: int
    """A file descriptor that comes to its end when the parent does."""
    restarts: int
    """How often the run was begun again so far."""
    died_of: str | None
    """What ended the process before this one, as `SIGKILL`; None for the first."""
    micro_batch_tokens: int | None
    """The budget to compute with; None leaves it to the job."""


def supervised() -> Supervised | None:
    """What this process was told; None where it is nobody's child."""
    told = os.environ.get(VARIABLE)
    return None if told is None else Supervised(**json.loads(told))


def end_with_parent(pipe: int, grace: float = GRACE) -> None:
    """End this process when its parent does: as by SIGTERM, and after `grace` seconds in any case.

    Args:
        pipe: `Supervised.pipe`.
        grace: for the checkpoint, in seconds.
    """
    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        os.read(pipe, 1)  # nobody writes: this returns at the end of the file
        # To the main thread, because only its own waiting is cut short by its signals.
        signal.pthread_kill(main, signal.SIGTERM)
        time.sleep(grace)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
