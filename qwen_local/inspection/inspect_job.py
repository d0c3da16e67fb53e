"""`data check` and `data show`: the data of a job before anything is trained on them.

Of the model only the tokenizer is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from qwen_local.datasets.formats import Example, FormatName, examples
from qwen_local.datasets.pool import in_order
from qwen_local.datasets.progress_bar import Progress
from qwen_local.datasets.record_files import Faults, Record
from qwen_local.datasets.row_builder import TokenizeConfig, blocks, draft_rows
from qwen_local.datasets.sources import Source, locate
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import DatasetError
from qwen_local.inspection.check import Check, SetCheck
from qwen_local.inspection.findings import Findings, look
from qwen_local.inspection.fix import Fixed, fix
from qwen_local.inspection.show import Shown, pick, show
from qwen_local.job.schema import Job
from qwen_local.models.source import fetch_tokenizer, find_model
from qwen_local.training.preparation import data_sources


def read_making(job: Job) -> TokenizeConfig:
    """How the records of a job become rows.

    Raises:
        ModelError: the tokenizer cannot be had, or not be used.
        JobError: the chat template cannot do what `data.thinking` asks for.
    """
    tokenizer = ChatTokenizer.load(fetch_tokenizer(find_model(job.model.name, job.model.revision)))
    tokenizer.check_thinking(job.data.thinking)
    return TokenizeConfig(
        tokenizer=tokenizer,
        max_length=job.data.max_length,
        overlong=job.data.overlong,
        train_on=job.data.train_on,
        thinking=job.data.thinking,
    )


def check_job(job: Job, making: TokenizeConfig, *, quiet: bool) -> Check:
    """Everything there is to say about the data of a job.

    Args:
        job: whose data are read.
        making: how they become rows.
        quiet: show no progress.

    Raises:
        DatasetError: a source is not there.
    """
    train, evaluation = locate(*data_sources(job))
    return Check.of(
        job.model.name,
        _check(making, train, quiet=quiet),
        _check(making, evaluation, quiet=quiet) if evaluation else None,
    )


def show_job(
    job: Job, making: TokenizeConfig, *, row: int | None = None, line: int | None = None
) -> Shown:
    """One training record of a job.

    Args:
        job: whose data are read.
        making: how they become rows.
        row: the record's number, counted from 1.
        line: the number behind the colon of its place; it wins.

    Raises:
        DatasetError: no such record, or it has faults.
    """
    example = pick(_only_source(job).examples(), row=row, line=line)
    rows = making.tokenizer.encode(draft_rows(making, example))
    decode = partial(making.tokenizer.decode, skip_special_tokens=False)
    return show(example, rows, decode, max_length=making.max_length, overlong=making.overlong)


def fix_job(job: Job, making: TokenizeConfig, output: Path) -> Fixed:
    """A repaired copy of the training data of a job.

    Raises:
        DatasetError: something is at `output`, or nothing is left to write.
    """
    source = _only_source(job)
    path = Path(source.name) if source.sha256 is not None else None
    return fix(source.read(), path, output, _Reader(source, making))


class _Reader:
    """Reads records one by one as training reads them all: the first settles the format."""

    def __init__(self, source: Source, making: TokenizeConfig) -> None:
        self._source, self._making = source, making

    def __call__(self, record: Record) -> Example | Faults:
        source = self._source
        [example] = examples([record], source.format, columns=source.columns, turns=source.turns)
        if isinstance(example, tuple):
            return example
        found = look(self._making, [example])
        if found.faulty:
            return tuple(fault for _, _, first in found.faults.by_count() for fault in first)
        self._source = replace(source, format=cast(FormatName, example.format))
        return example


def _only_source(job: Job) -> Source:
    """Where the training rows come from.

    Raises:
        DatasetError: it is not there, or there are several.
    """
    sources, _ = locate(*data_sources(job))
    if len(sources) > 1:
        names = ", ".join(source.name for source in sources)
        hint = "name one of them as FILE"
        raise DatasetError.at("data.train", f"expected a single source; found {names}", hint)
    return sources[0]


def _check(making: TokenizeConfig, sources: Sequence[Source], *, quiet: bool) -> SetCheck:
    found = Findings.begin(making)
    without_rows: list[str] = []
    for source in sources:
        before = found.rows
        with Progress(source.name, 0, quiet=quiet) as progress:
            for part in in_order(partial(look, making), blocks(source.examples())):
                found.merge(part)
                progress.add(part.records)
        if found.rows == before:
            without_rows.append(source.name)
    return SetCheck.of([source.name for source in sources], found, without_rows)
