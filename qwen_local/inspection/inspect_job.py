"""`data check` and `data show` for the data of a job.

Only the tokenizer of the model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from qwen_local.datasets.formats import Example, FormatName, examples
from qwen_local.datasets.pool import in_order
from qwen_local.datasets.progress_bar import RecordProgress
from qwen_local.datasets.record_files import Faults, Record
from qwen_local.datasets.row_builder import TokenizeConfig, blocks, draft_rows
from qwen_local.datasets.sources import Source, locate
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import DatasetError
from qwen_local.inspection.check import DataCheck, SetCheck
from qwen_local.inspection.findings import SetFindings, inspect_block
from qwen_local.inspection.fix import FixResult, fix
from qwen_local.inspection.show import ShownRecord, pick, show
from qwen_local.job.schema import Job
from qwen_local.models.source import fetch_tokenizer, find_model
from qwen_local.training.job_data import data_sources, tokenize_config


def read_making(job: Job) -> TokenizeConfig:
    """Load the tokenizer and the options that turn a job's records into rows.

    Raises:
        ModelError: the tokenizer is missing or invalid.
        JobError: the chat template does not support `data.thinking`.
    """
    tokenizer = ChatTokenizer.load(fetch_tokenizer(find_model(job.model.name, job.model.revision)))
    tokenizer.check_thinking(job.data.thinking)
    return tokenize_config(job, tokenizer)


def check_job(job: Job, making: TokenizeConfig, *, quiet: bool) -> DataCheck:
    """Check all data of a job.

    Args:
        job: the job.
        making: tokenizer and options.
        quiet: True for no progress bar.

    Raises:
        DatasetError: a source does not exist.
    """
    train, evaluation = locate(*data_sources(job))
    return DataCheck.of(
        job.model.name,
        _check(making, train, quiet=quiet),
        _check(making, evaluation, quiet=quiet) if evaluation else None,
    )


def show_job(
    job: Job, making: TokenizeConfig, *, row: int | None = None, line: int | None = None
) -> ShownRecord:
    """Return one training record of a job, marked up for display.

    Args:
        job: the job.
        making: tokenizer and options.
        row: number of the record, from 1.
        line: line number of the record; takes precedence over `row`.

    Raises:
        DatasetError: the record does not exist or has faults.
    """
    example = pick(_only_source(job).examples(), row=row, line=line)
    rows = making.tokenizer.encode(draft_rows(making, example))
    decode = partial(making.tokenizer.decode, skip_special_tokens=False)
    return show(example, rows, decode, max_length=making.max_length, overlong=making.overlong)


def fix_job(job: Job, making: TokenizeConfig, output: Path) -> FixResult:
    """Write a repaired copy of a job's training data.

    Raises:
        DatasetError: `output` exists, or no record is left to write.
    """
    source = _only_source(job)
    path = Path(source.name) if source.sha256 is not None else None
    return fix(source.read(), path, output, _Reader(source, making))


class _Reader:
    """Reads single records as training reads them: the first record decides the format."""

    def __init__(self, source: Source, making: TokenizeConfig) -> None:
        self._source, self._making = source, making

    def __call__(self, record: Record) -> Example | Faults:
        source = self._source
        [example] = examples([record], source.format, columns=source.columns, turns=source.turns)
        if isinstance(example, tuple):
            return example
        found = inspect_block(self._making, [example])
        if found.faulty:
            return tuple(fault for _, _, first in found.faults.by_count() for fault in first)
        self._source = replace(source, format=cast(FormatName, example.format))
        return example


def _only_source(job: Job) -> Source:
    """Return the single training source.

    Raises:
        DatasetError: the source does not exist, or the job has several.
    """
    sources, _ = locate(*data_sources(job))
    if len(sources) > 1:
        names = ", ".join(source.name for source in sources)
        hint = "pass one of them as FILE"
        raise DatasetError.at("data.train", f"expected a single source; found {names}", hint)
    return sources[0]


def _check(making: TokenizeConfig, sources: Sequence[Source], *, quiet: bool) -> SetCheck:
    found = SetFindings.empty(making)
    without_rows: list[str] = []
    for source in sources:
        before = found.rows
        with RecordProgress(source.name, 0, quiet=quiet) as progress:
            for part in in_order(partial(inspect_block, making), blocks(source.examples())):
                found.merge(part)
                progress.add(part.records)
        if found.rows == before:
            without_rows.append(source.name)
    return SetCheck.of([source.name for source in sources], found, without_rows)
