"""Number of rows that a job would have, counted without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen_local.datasets.row_builder import content_digest
from qwen_local.datasets.sources import Source, SourceSpec, locate
from qwen_local.datasets.split import evaluation_parts, repeated
from qwen_local.errors import DatasetError, Fault


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCount:
    """Number of rows before any is dropped for its length."""

    train: int
    eval: int


def count_rows(
    *,
    train: Sequence[SourceSpec],
    eval: Sequence[SourceSpec],
    eval_fraction: float,
    seed: int,
) -> RowCount:
    """Read and check every record, and split as `prepare` does.

    Raises:
        DatasetError: every fault of all sources.
    """
    faults: list[Fault] = []
    train_sources, eval_sources = locate(train, eval)
    train_parts, eval_parts = (
        [_contents(source, faults) for source in sources]
        for sources in (train_sources, eval_sources)
    )
    if faults:
        raise DatasetError(faults)
    if not eval_parts:
        chosen = evaluation_parts(train_parts, fraction=eval_fraction, seed=seed)
        marked = list(zip(train_parts, chosen, strict=True))
        eval_parts = [contents[marks] for contents, marks in marked]
        train_parts = [contents[~marks] for contents, marks in marked]
    rows = sum(
        len(repeated(contents, weight=source.weight, seed=seed))
        for contents, source in zip(train_parts, train_sources, strict=True)
    )
    return RowCount(train=rows, eval=sum(map(len, eval_parts)))


def _contents(source: Source, faults: list[Fault]) -> np.ndarray:
    """Hash the content of each usable record of a source, uint64; append its faults."""
    digests: list[int] = []
    before = len(faults)
    for example in source.examples():
        if isinstance(example, tuple):
            faults += example
        elif not example.empty:
            digests.append(content_digest(example))
    if not digests and len(faults) == before:
        faults.append(Fault(source.name, "expected at least one record; found none"))
    return np.array(digests, np.uint64)
