"""What a command says while it works: on stderr, and nowhere with `--quiet`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

log = logging.getLogger("qwen_local")


@contextmanager
def handled(handler: logging.Handler) -> Iterator[None]:
    """What is said goes to this handler, too."""
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def talk(*, quiet: bool) -> AbstractContextManager[None]:
    """What is said goes to stderr, unless `quiet`."""
    return nullcontext() if quiet else handled(logging.StreamHandler(sys.stderr))
