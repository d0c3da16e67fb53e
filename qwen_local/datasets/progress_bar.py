"""Progress bar for reading and tokenizing a source."""

from __future__ import annotations

import sys
from typing import Self

from tqdm import tqdm

DELAY_SECONDS = 2.0
"""Seconds until the bar appears; most data are ready earlier."""


class RecordProgress:
    """A progress bar on a terminal; silent elsewhere and with `quiet`."""

    def __init__(self, name: str, done: int, *, quiet: bool) -> None:
        """Start with `done` records."""
        self._bar = tqdm(
            desc=f"tokenizing {name}",
            initial=done,
            unit=" records",
            unit_scale=True,
            delay=DELAY_SECONDS,
            disable=quiet or not sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, records: int) -> None:
        """Advance by this many records."""
        self._bar.update(records)
