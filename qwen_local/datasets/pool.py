"""Map a function over blocks on all cores, with results in the order of the blocks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from qwen_local.errors import QwenLocalError

B = TypeVar("B")
R = TypeVar("R")

ALONE = 2
"""Blocks done in this process first: starting others takes about as long."""
MOST_PROCESSES = 16
"""A single process reads for all of them, and each holds some blocks."""
AHEAD = 2
"""Number of waiting blocks per process."""

_work: Callable[[Any], Any]


def in_order(
    work: Callable[[B], R], blocks: Iterable[B], *, processes: int | None = None
) -> Iterator[R]:
    """Yield `work(block)` of every block, in their order.

    Args:
        work: a function that can be pickled, which happens once per process.
        blocks: read as they are needed, a few ahead.
        processes: number of processes; None for one per core.

    Raises:
        QwenLocalError: a process was killed, for example because memory ran out.
    """
    blocks = iter(blocks)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = processes or min(count or 1, MOST_PROCESSES)
    for done, block in enumerate(blocks, 1):
        yield work(block)
        if done == ALONE and processes > 1:
            break
    else:
        return
    # Spawned, not forked: threads of PyTorch, MLX or Arrow may hold locks at this moment.
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(work,),
    )
    waiting: deque[Future[R]] = deque()
    try:
        for block in blocks:
            waiting.append(pool.submit(_done, block))
            if len(waiting) > AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise QwenLocalError(
            "a process that prepared the data has ended; memory may have run out (or a "
            'program of your own starts its work outside of `if __name__ == "__main__":`)'
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start(work: Callable[[Any], Any]) -> None:
    """Set up a process of the pool before its first block."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl+C
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _done(block: Any) -> Any:
    return _work(block)
