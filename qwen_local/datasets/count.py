"""How many rows a job would have, where there is no tokenizer to make them with."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from qwen_local.datasets.formats import FormatName, examples
from qwen_local.datasets.prepare import content_digest
from qwen_local.datasets.sources import locate
from qwen_local.datasets.split import evaluation_rows
from qwen_local.errors import DatasetError, Fault


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCount:
    """Rows before any is dropped for its length."""

    train: int
    eval: int


def count_rows(
    *,
    train: str,
    eval: str | None,
    eval_fraction: float,
    format: FormatName,
    limit: int | None,
    seed: int,
) -> RowCount:
    """Read and check every record, and split as `prepare` does.

    Raises:
        DatasetError: every fault of all sources.
    """
    faults: list[Fault] = []
    digests: list[list[bytes]] = []
    for source in locate(train, eval):
        if source is None:
            continue
        digests.append([])
        for example in examples(islice(source.read(), limit), format):
            if isinstance(example, tuple):
                faults += example
            elif not example.says_nothing:
                digests[-1].append(content_digest(example.content))
        if not digests[-1] and not faults:
            faults.append(Fault(source.name, "expected at least one record; found none"))
    if faults:
        raise DatasetError(faults)
    if len(digests) == 2:
        return RowCount(train=len(digests[0]), eval=len(digests[1]))
    held_out = sum(evaluation_rows(digests[0], fraction=eval_fraction, seed=seed))
    return RowCount(train=len(digests[0]) - held_out, eval=held_out)
