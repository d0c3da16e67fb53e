"""How many rows a job would have, where there is no tokenizer to make them with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen_local.datasets.row_builder import content_digest
from qwen_local.datasets.sources import Source, Wanted, locate
from qwen_local.datasets.split import evaluation_parts, repeated
from qwen_local.errors import DatasetError, Fault


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCount:
    """Rows before any is dropped for its length."""

    train: int
    eval: int


def count_rows(
    *,
    train: Sequence[Wanted],
    eval: Sequence[Wanted],
    eval_fraction: float,
    seed: int,
) -> RowCount:
    """Read and check every record, and split as `prepare` does.

    Raises:
        DatasetError: every fault of all sources.
    """
    faults: list[Fault] = []
    train_sources, eval_sources = locate(train, eval)
    learned, held_out = (
        [_contents(source, faults) for source in sources]
        for sources in (train_sources, eval_sources)
    )
    if faults:
        raise DatasetError(faults)
    if not held_out:
        chosen = evaluation_parts(learned, fraction=eval_fraction, seed=seed)
        sides = list(zip(learned, chosen, strict=True))
        held_out = [contents[marks] for contents, marks in sides]
        learned = [contents[~marks] for contents, marks in sides]
    rows = sum(
        len(repeated(contents, weight=source.weight, seed=seed))
        for contents, source in zip(learned, train_sources, strict=True)
    )
    return RowCount(train=rows, eval=sum(map(len, held_out)))


def _contents(source: Source, faults: list[Fault]) -> np.ndarray:
    """uint64: a hash of what each usable record of a source says; its faults join the others."""
    digests: list[int] = []
    before = len(faults)
    for example in source.examples():
        if isinstance(example, tuple):
            faults += example
        elif not example.says_nothing:
            digests.append(content_digest(example))
    if not digests and len(faults) == before:
        faults.append(Fault(source.name, "expected at least one record; found none"))
    return np.array(digests, np.uint64)
