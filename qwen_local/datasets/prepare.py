"""Make the rows of a run from the data section of a job, and report on the data."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from qwen_local.datasets.cache import Cache, cache_folder, cache_key
from qwen_local.datasets.faults import FAULTS_KEPT
from qwen_local.datasets.pool import in_order
from qwen_local.datasets.progress_bar import RecordProgress
from qwen_local.datasets.record_files import kind_of_file
from qwen_local.datasets.report import DataReport, SetReport, SourceReport
from qwen_local.datasets.row_builder import Outcome, TokenizeConfig, blocks, tokenize_block
from qwen_local.datasets.row_store import Batch, StoredRows, Table
from qwen_local.datasets.sources import Source, SourceSpec, locate
from qwen_local.datasets.split import evaluation_parts, repeated
from qwen_local.errors import DatasetError, DiskFullError, Fault

PART, PART_BYTES = 16, 64 * 2**20
"""Blocks of one cache file, or bytes, whichever is reached first."""

log = logging.getLogger("qwen_local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Training rows, evaluation rows and the report about them."""

    train: StoredRows
    """Rows of every source, repeated by its weight."""
    eval: StoredRows | None
    report: DataReport
    train_places: Sequence[str]
    """Place of each training row: `train.jsonl:17`."""
    eval_places: Sequence[str]
    """Place of each evaluation row; empty without any."""


def prepare(
    config: TokenizeConfig,
    *,
    train: Sequence[SourceSpec],
    eval: Sequence[SourceSpec],
    eval_fraction: float,
    seed: int,
    quiet: bool = True,
) -> Prepared:
    """Read, check and tokenize all rows.

    Args:
        config: tokenizer and options.
        train: files, folders or hub ids.
        eval: the same; if empty, the evaluation splits beside those of `train` or, without any,
            a fraction of the training rows.
        eval_fraction: that fraction.
        seed: seed for the choice of evaluation rows, and of the rows that a weight adds.
        quiet: show no progress.

    Raises:
        DatasetError: every fault of all sources, or a source without a usable row.
        JobError: the chat template does not support `config.thinking`.
    """
    config.tokenizer.check_thinking(config.thinking)
    train_sources, eval_sources = locate(train, eval)
    parts = [read_source(source, config, quiet=quiet) for source in [*train_sources, *eval_sources]]
    if faults := [fault for part in parts for fault in part.outcome.faults]:
        raise DatasetError(faults)
    train_parts = [StoredRows.of(part.table) for part in parts[: len(train_sources)]]
    eval_parts = [StoredRows.of(part.table) for part in parts[len(train_sources) :]]
    split = False
    if not eval_parts:
        train_parts, eval_parts = _split(train_parts, eval_fraction, seed)
        split = bool(eval_parts)
    train_rows = _weighted(train_parts, train_sources, seed)
    eval_rows = StoredRows.joined(eval_parts)
    opening = _commonest_opening(parts)
    report = DataReport(
        sources=[part.report() for part in parts],
        train=SetReport.of(train_rows),
        eval=SetReport.of(eval_rows) if len(eval_rows) else None,
        split=eval_fraction if split else None,
        shared=int(np.isin(eval_rows.content_R, train_rows.content_R).sum()),
        max_length=config.max_length,
        overlong=config.overlong,
        train_on=config.train_on,
        thinking=config.thinking,
        enable_thinking=config.tokenizer.thinking_after(opening),
        template_sha256=config.tokenizer.template_sha256,
    )
    return Prepared(
        train=train_rows,
        eval=eval_rows if len(eval_rows) else None,
        report=report,
        train_places=train_rows.places,
        eval_places=eval_rows.places,
    )


def _weighted(parts: Sequence[StoredRows], sources: Sequence[Source], seed: int) -> StoredRows:
    """Join the training rows of all sources, repeated by the weight of their source."""
    return StoredRows.joined(
        rows.where(repeated(rows.content_R, weight=source.weight, seed=seed))
        for rows, source in zip(parts, sources, strict=True)
    )


def _split(
    parts: Sequence[StoredRows], fraction: float, seed: int
) -> tuple[list[StoredRows], list[StoredRows]]:
    """Split the rows of each source into (training rows, evaluation rows).

    The second list is empty if there are too few rows for a split.
    """
    contents = [rows.content_R for rows in parts]
    chosen = evaluation_parts(contents, fraction=fraction, seed=seed)
    if not any(marks.any() for marks in chosen):
        return list(parts), []
    pairs = list(zip(parts, chosen, strict=True))
    return [rows.where(~marks) for rows, marks in pairs], [rows.where(m) for rows, m in pairs]


def _commonest_opening(parts: Sequence[SourceRows]) -> str:
    openings = sum((part.outcome.openings for part in parts), Counter[str]())
    return max(openings, key=lambda opening: (openings[opening], opening), default="")


# --- one source ---


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRows:
    """The rows of one source, and the outcome of its records."""

    source: Source
    table: Table
    outcome: Outcome

    def report(self) -> SourceReport:
        """Return its entry in data.json."""
        rows, outcome = StoredRows.of(self.table), self.outcome
        return SourceReport(
            name=self.source.name,
            sha256=self.source.sha256,
            commit=self.source.commit,
            format=outcome.format,
            records=outcome.records,
            usable=SetReport.of(rows),
            dropped=dict(outcome.dropped),
            cut=outcome.cut,
            longest=outcome.longest,
            lengths=outcome.histogram,
            ignored_keys=dict(outcome.ignored),
            notes=dict(outcome.notes),
            duplicates=outcome.usable - len(np.unique(rows.content_R)),
            weight=self.source.weight,
            limit=self.source.limit,
        )


def read_source(source: Source, config: TokenizeConfig, *, quiet: bool) -> SourceRows:
    """Return all rows of a source, cached or newly tokenized; or all of its faults."""
    cache = None
    if (source.sha256 or source.commit) and not config.tokenizer.depends_on_date:
        key = cache_key(
            config,
            # A file may be moved; on the Hub all splits of a data set have the same commit.
            source=source.sha256 or [source.commit, source.name],
            kind=kind_of_file(Path(source.name)) if source.sha256 else None,
            format=source.format,
            columns=dict(source.columns),
            turns=None if source.turns is None else asdict(source.turns),
            limit=source.limit,
        )
        cache = Cache(cache_folder() / key)
    parts = [] if cache is None else list(cache.parts())
    total, batches = Outcome(), [batch for _, batch in parts]
    for outcome, _ in parts:
        total.merge(outcome)
    if cache is None or not cache.is_complete(len(parts)):
        total, batches = _tokenize(source, config, cache, total, batches, quiet=quiet)
    if not any(batch.rows.num_rows for batch in batches) and not total.faults:
        total.faults.append(_without_rows(source, total))
    return SourceRows(source=source, table=Table(source.name, batches), outcome=total)


def _tokenize(
    source: Source,
    config: TokenizeConfig,
    cache: Cache | None,
    total: Outcome,
    batches: list[Batch],
    *,
    quiet: bool,
) -> tuple[Outcome, list[Batch]]:
    """Tokenize the records of a source that are not cached yet.

    Args:
        source: source of the records.
        config: how they are tokenized.
        cache: cache to write parts to, if any.
        total: outcome of the records that are cached.
        batches: their rows.
        quiet: show no progress.
    """
    parts = len(batches)
    unwritten = Outcome()  # the part that is not written yet
    pending: list[pa.RecordBatch] = []
    records = islice(source.examples(), total.records, None)
    with RecordProgress(source.name, total.records, quiet=quiet) as progress:
        for outcome, batch in in_order(partial(tokenize_block, config), blocks(records)):
            unwritten.merge(outcome)
            progress.add(outcome.records)
            if unwritten.faults:  # the rows will not be used
                cache, pending = None, []
                if len(unwritten.faults) > FAULTS_KEPT:
                    problem = f"reading stopped after {FAULTS_KEPT} faults"
                    hint = f"qwen-local data check {source.name} shows all of them by kind"
                    unwritten.faults[FAULTS_KEPT:] = [Fault(source.name, problem, hint, ends=True)]
                    break
                continue
            pending.append(batch)
            if cache is not None and _is_part(pending):
                source.check_unchanged()
                written = _write_part(cache, parts, unwritten, pending)
                if written is None:
                    cache = None
                    continue
                parts += 1
                batches.append(written)
                total.merge(unwritten)
                unwritten, pending = Outcome(), []
    source.check_unchanged()
    if cache is not None and parts:
        written = _write_part(cache, parts, unwritten, pending) if pending else None
        if written is not None:
            parts, pending = parts + 1, []
            batches.append(written)
        if written is not None or not pending:
            with suppress(OSError):  # the next run resumes from the parts that are there
                cache.complete(parts)
    total.merge(unwritten)
    return total, batches + [Batch(rows) for rows in pending]


def _is_part(batches: Sequence[pa.RecordBatch]) -> bool:
    return len(batches) >= PART or sum(batch.nbytes for batch in batches) >= PART_BYTES


def _write_part(
    cache: Cache, index: int, outcome: Outcome, batches: Sequence[pa.RecordBatch]
) -> Batch | None:
    """Write a part of the cache and map it back; None if it cannot be written.

    A run works without it: the cache only saves time.
    """
    try:
        return cache.add(index, outcome, batches)[1]
    except (OSError, ValueError, DiskFullError) as error:
        log.warning("rows are not cached: %s", str(error).partition("\n")[0])
        return None


def _without_rows(source: Source, outcome: Outcome) -> Fault:
    if outcome.records == 0:
        return Fault(source.name, "expected at least one record; found none")
    reasons = ", ".join(f"{count} {reason}" for reason, count in outcome.dropped.items())
    problem = f"expected at least one row to train on; dropped: {reasons}"
    hint = None
    if outcome.longest:
        hint = f"raise data.max_length (the longest conversation has {outcome.longest} tokens)"
    return Fault(source.name, problem, hint)
