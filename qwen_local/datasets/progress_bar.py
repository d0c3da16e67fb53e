"""How far the preparation of a source has come."""

from __future__ import annotations

import sys
from typing import Self

from tqdm import tqdm

LATER = 2.0
"""Seconds until anything is shown: most data are ready before."""


class RecordProgress:
    """A bar on a terminal; elsewhere, and with `quiet`, nothing."""

    def __init__(self, name: str, done: int, *, quiet: bool) -> None:
        """Begin behind the records whose rows are there already."""
        self._bar = tqdm(
            desc=f"tokenizing {name}",
            initial=done,
            unit=" records",
            unit_scale=True,
            delay=LATER,
            disable=quiet or not sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, records: int) -> None:
        """So many more are done."""
        self._bar.update(records)
