"""From the data section of a job to the rows of a run, and a report of what became of the data."""

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
from qwen_local.datasets.row_builder import Made, Making, blocks, make
from qwen_local.datasets.row_store import Batch, StoredRows, Table
from qwen_local.datasets.sources import Source, Wanted, locate
from qwen_local.datasets.split import evaluation_parts, repeated
from qwen_local.datasets.tokenizer import ChatTokenizer, Thinking, TrainOn
from qwen_local.datasets.trim import Overlong
from qwen_local.errors import DatasetError, DiskFullError, Fault

PART, PART_BYTES = 16, 64 * 2**20
"""Blocks of a file of the cache, or bytes, whichever is reached first. Less is not worth one."""

log = logging.getLogger("qwen_local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a run trains on, what it is evaluated on, and how both came about."""

    train: StoredRows
    """Of every source as often as its weight says."""
    eval: StoredRows | None
    report: DataReport
    train_places: Sequence[str]
    """Where each training row stands: `train.jsonl:17`."""
    eval_places: Sequence[str]
    """The same of the evaluation rows; empty without."""


def prepare(
    tokenizer: ChatTokenizer,
    *,
    train: Sequence[Wanted],
    eval: Sequence[Wanted],
    eval_fraction: float,
    max_length: int,
    overlong: Overlong,
    train_on: TrainOn,
    seed: int,
    thinking: Thinking = "auto",
    quiet: bool = True,
) -> Prepared:
    """Read, check and tokenize all rows.

    Args:
        tokenizer: of the model to be trained.
        train: files, folders or hub ids.
        eval: the same; none takes the evaluation splits beside those of `train` or, failing that,
            a part of its rows.
        eval_fraction: that part.
        max_length: tokens of a row, counted up to the last one that is trained.
        overlong: what to do with longer ones: `cut` keeps the first `max_length` tokens.
        train_on: every assistant turn, or the last one alone.
        seed: of the choice of evaluation rows.
        thinking: what becomes of the assistant's reasoning.
        quiet: show no progress.

    Raises:
        DatasetError: every fault of all sources, or that a source has no usable row.
        JobError: the chat template cannot do what `thinking` asks for.
    """
    tokenizer.check_thinking(thinking)
    making = Making(
        tokenizer=tokenizer,
        max_length=max_length,
        overlong=overlong,
        train_on=train_on,
        thinking=thinking,
    )
    train_sources, eval_sources = locate(train, eval)
    parts = [read_source(source, making, quiet=quiet) for source in [*train_sources, *eval_sources]]
    if faults := [fault for part in parts for fault in part.made.faults]:
        raise DatasetError(faults)
    learned = [StoredRows.of(part.table) for part in parts[: len(train_sources)]]
    held_out = [StoredRows.of(part.table) for part in parts[len(train_sources) :]]
    split = None
    if not held_out:
        contents = [rows.content_R for rows in learned]
        chosen = evaluation_parts(contents, fraction=eval_fraction, seed=seed)
        if any(marks.any() for marks in chosen):
            split = eval_fraction
            held_out = [rows.where(marks) for rows, marks in zip(learned, chosen, strict=True)]
            learned = [rows.where(~marks) for rows, marks in zip(learned, chosen, strict=True)]
    train_rows = StoredRows.joined(
        rows.where(repeated(rows.content_R, weight=source.weight, seed=seed))
        for rows, source in zip(learned, train_sources, strict=True)
    )
    eval_rows = StoredRows.joined(held_out)
    report = DataReport(
        sources=[part.report() for part in parts],
        train=SetReport.of(train_rows),
        eval=SetReport.of(eval_rows) if len(eval_rows) else None,
        split=split,
        shared=int(np.isin(eval_rows.content_R, train_rows.content_R).sum()),
        max_length=max_length,
        overlong=overlong,
        train_on=train_on,
        thinking=thinking,
        enable_thinking=tokenizer.thinking_after(_commonest_opening(parts)),
        template_sha256=tokenizer.template_sha256,
    )
    return Prepared(
        train=train_rows,
        eval=eval_rows if len(eval_rows) else None,
        report=report,
        train_places=train_rows.places,
        eval_places=eval_rows.places,
    )


def _commonest_opening(parts: Sequence[SourceRows]) -> str:
    openings = sum((part.made.openings for part in parts), Counter[str]())
    return max(openings, key=lambda opening: (openings[opening], opening), default="")


# --- one source ---


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRows:
    """The rows of one source, and what became of its records."""

    source: Source
    table: Table
    made: Made

    def report(self) -> SourceReport:
        """What data.json says of it."""
        rows, made = StoredRows.of(self.table), self.made
        return SourceReport(
            name=self.source.name,
            sha256=self.source.sha256,
            commit=self.source.commit,
            format=made.format,
            records=made.records,
            usable=SetReport.of(rows),
            dropped=dict(made.dropped),
            cut=made.cut,
            longest=made.longest,
            lengths=made.histogram,
            ignored_keys=dict(made.ignored),
            notes=dict(made.notes),
            duplicates=made.usable - len(np.unique(rows.content_R)),
            weight=self.source.weight,
            limit=self.source.limit,
        )


def read_source(source: Source, making: Making, *, quiet: bool) -> SourceRows:
    """All rows of a source, from the cache or for it; or all of its faults."""
    cache = None
    if (source.sha256 or source.commit) and not making.tokenizer.depends_on_date:
        key = cache_key(
            making,
            # A file may be moved; of a data set on the hub, every split has the same commit.
            source=source.sha256 or [source.commit, source.name],
            kind=kind_of_file(Path(source.name)) if source.sha256 else None,
            format=source.format,
            columns=dict(source.columns),
            turns=None if source.turns is None else asdict(source.turns),
            limit=source.limit,
        )
        cache = Cache(cache_folder() / key)
    parts = [] if cache is None else list(cache.parts())
    total, batches = Made(), [batch for _, batch in parts]
    for made, _ in parts:
        total.merge(made)
    if cache is None or not cache.is_complete(len(parts)):
        total, batches = _make(source, making, cache, total, batches, quiet=quiet)
    if not any(batch.rows.num_rows for batch in batches) and not total.faults:
        total.faults.append(_without_rows(source, total))
    return SourceRows(source=source, table=Table(source.name, batches), made=total)


def _make(
    source: Source,
    making: Making,
    cache: Cache | None,
    total: Made,
    batches: list[Batch],
    *,
    quiet: bool,
) -> tuple[Made, list[Batch]]:
    """The rows of a source, from behind those that are there already.

    Args:
        source: where the records are read.
        making: how they become rows.
        cache: where parts are kept, if they can be.
        total: what became of the records whose rows are there.
        batches: these rows.
        quiet: show no progress.
    """
    parts = len(batches)
    begun = Made()  # the part that is not written yet
    pending: list[pa.RecordBatch] = []
    records = islice(source.examples(), total.records, None)
    with RecordProgress(source.name, total.records, quiet=quiet) as progress:
        for made, batch in in_order(partial(make, making), blocks(records)):
            begun.merge(made)
            progress.add(made.records)
            if begun.faults:  # nobody will ask for the rows
                cache, pending = None, []
                if len(begun.faults) > FAULTS_KEPT:
                    problem = f"reading stopped after {FAULTS_KEPT} faults"
                    hint = f"qwen-local data check {source.name} shows all of them by kind"
                    begun.faults[FAULTS_KEPT:] = [Fault(source.name, problem, hint, ends=True)]
                    break
                continue
            pending.append(batch)
            if cache is not None and _is_part(pending):
                source.check_unchanged()
                kept = _kept(cache, parts, begun, pending)
                if kept is None:
                    cache = None
                    continue
                parts += 1
                batches.append(kept)
                total.merge(begun)
                begun, pending = Made(), []
    source.check_unchanged()
    if cache is not None and parts:
        kept = _kept(cache, parts, begun, pending) if pending else None
        if kept is not None:
            parts, pending = parts + 1, []
            batches.append(kept)
        if kept is not None or not pending:
            with suppress(OSError):  # what is there is gone on with the next time
                cache.complete(parts)
    total.merge(begun)
    return total, batches + [Batch(rows) for rows in pending]


def _is_part(batches: Sequence[pa.RecordBatch]) -> bool:
    return len(batches) >= PART or sum(batch.nbytes for batch in batches) >= PART_BYTES


def _kept(cache: Cache, index: int, made: Made, batches: Sequence[pa.RecordBatch]) -> Batch | None:
    """A part of the cache as it is paged in, or None where it cannot be written.

    It only saves time.
    """
    try:
        return cache.add(index, made, batches)[1]
    except (OSError, ValueError, DiskFullError) as error:
        log.warning("rows are not kept for the next time: %s", str(error).partition("\n")[0])
        return None


def _without_rows(source: Source, made: Made) -> Fault:
    if made.records == 0:
        return Fault(source.name, "expected at least one record; found none")
    reasons = ", ".join(f"{count} {reason}" for reason, count in made.dropped.items())
    problem = f"expected at least one row to train on; dropped: {reasons}"
    hint = None
    if made.longest:
        hint = f"raise data.max_length (the longest conversation has {made.longest} tokens)"
    return Fault(source.name, problem, hint)
