"""From the data section of a job to the rows of a run, and a report of what became of the data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np

from qwen_local.datasets.faults import FAULTS_KEPT
from qwen_local.datasets.formats import Content, Example, FormatName, examples
from qwen_local.datasets.report import DataReport, Histogram, SetReport, SourceReport
from qwen_local.datasets.sources import Source, locate
from qwen_local.datasets.split import evaluation_rows
from qwen_local.datasets.tokenizer import ChatTokenizer, Tokenised
from qwen_local.errors import DatasetError, Fault
from qwen_local.rows import Rows, shift_labels

TrainOn = Literal["assistant", "last"]
Overlong = Literal["drop", "cut", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a run trains on, what it is evaluated on, and how both came about."""

    train: Rows
    eval: Rows | None
    report: DataReport
    train_places: tuple[str, ...]
    """Where each training row stands: `train.jsonl:17`."""
    eval_places: tuple[str, ...]
    """The same of the evaluation rows; empty without."""


def prepare(
    tokenizer: ChatTokenizer,
    *,
    train: str,
    eval: str | None,
    eval_fraction: float,
    format: FormatName,
    max_length: int,
    overlong: Overlong,
    limit: int | None,
    train_on: TrainOn,
    seed: int,
) -> Prepared:
    """Read, check and tokenise all rows.

    Args:
        tokenizer: of the model to be trained.
        train: file, folder or hub id.
        eval: the same; None takes the evaluation split beside `train` or, failing that, a part
            of its rows.
        eval_fraction: that part.
        format: of the records, or `auto`.
        max_length: tokens of a conversation, counted up to the last one that is trained.
        overlong: what to do with longer ones: `cut` keeps the first `max_length` tokens.
        limit: use only so many records of each source, the first ones.
        train_on: every assistant turn, or the last one alone.
        seed: of the choice of evaluation rows.

    Raises:
        DatasetError: every fault of all sources, or that a source has no usable row.
    """
    sources = [source for source in locate(train, eval) if source is not None]
    parts = [
        _read(source, tokenizer, format, max_length, overlong, limit, train_on)
        for source in sources
    ]
    if faults := [fault for part in parts for fault in part.faults]:
        raise DatasetError(faults)
    train_part, eval_part, split = parts[0].rows, [], None
    if len(parts) == 2:
        eval_part = parts[1].rows
    else:
        digests = [row.digest for row in train_part]
        held_out = evaluation_rows(digests, fraction=eval_fraction, seed=seed)
        if any(held_out):
            split = eval_fraction
            eval_part = [row for row, held in zip(train_part, held_out, strict=True) if held]
            train_part = [row for row, held in zip(train_part, held_out, strict=True) if not held]
    train_rows, eval_rows = _rows(train_part), _rows(eval_part) if eval_part else None
    trained_on = {row.digest for row in train_part}
    report = DataReport(
        sources=[part.report() for part in parts],
        train=SetReport.of(train_rows),
        eval=None if eval_rows is None else SetReport.of(eval_rows),
        split=split,
        shared=sum(row.digest in trained_on for row in eval_part),
        max_length=max_length,
        overlong=overlong,
        limit=limit,
        train_on=train_on,
        template_sha256=tokenizer.template_sha256,
    )
    return Prepared(
        train=train_rows,
        eval=eval_rows,
        report=report,
        train_places=tuple(row.place for row in train_part),
        eval_places=tuple(row.place for row in eval_part),
    )


def tokenise(tokenizer: ChatTokenizer, example: Example, *, train_on: TrainOn) -> Tokenised:
    """The whole example in tokens, however long.

    Raises:
        DatasetError: with the place of the example and the field in it.
    """
    try:
        if isinstance(example.content, str):
            return tokenizer.encode_text(example.content)
        return tokenizer.encode_conversation(example.content, train_on=train_on)
    except DatasetError as error:
        raise DatasetError(
            replace(fault, where=f"{example.where}: {fault.where}") for fault in error.faults
        ) from None


# --- one source ---


@dataclass(frozen=True, slots=True)
class _Row:
    ids_T: np.ndarray
    """int32 [T]: input tokens."""
    targets_T: np.ndarray
    """int32 [T]: the next token, or IGNORE."""
    digest: bytes
    """SHA-256 of the content, so that equal rows are known."""
    place: str
    """`train.jsonl:17`."""


@dataclass(kw_only=True, slots=True)
class _Part:
    """What has become of one source so far."""

    source: Source
    format: str
    records: int = 0
    rows: list[_Row] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def report(self) -> SourceReport:
        return SourceReport(
            name=self.source.name,
            sha256=self.source.sha256,
            commit=self.source.commit,
            format=self.format,
            records=self.records,
            usable=SetReport.of(_rows(self.rows)),
            dropped=dict(self.dropped),
            cut=self.cut,
            longest=max(self.lengths, default=0),
            lengths=Histogram.of(self.lengths),
            ignored_keys=dict(self.ignored),
            notes=dict(self.notes),
            duplicates=len(self.rows) - len({row.digest for row in self.rows}),
        )


def _read(
    source: Source,
    tokenizer: ChatTokenizer,
    format: FormatName,
    max_length: int,
    overlong: Overlong,
    limit: int | None,
    train_on: TrainOn,
) -> _Part:
    """All rows of a source, or all of its faults."""
    part = _Part(source=source, format=format)
    for example in examples(islice(source.read(), limit), format):
        part.records += 1
        if isinstance(example, tuple):
            part.faults += example
        elif example.says_nothing:
            part.dropped["empty_answer"] += 1
        else:
            try:
                tokenised = tokenise(tokenizer, example, train_on=train_on)
                _add(part, example, tokenised, max_length, overlong)
            except DatasetError as error:
                part.faults += error.faults
        if len(part.faults) >= FAULTS_KEPT:
            problem = f"reading stopped after {FAULTS_KEPT} faults"
            part.faults.append(Fault(source.name, problem))
            break
    if not part.rows and not part.faults:
        part.faults.append(_without_rows(part))
    return part


def _add(
    part: _Part, example: Example, tokenised: Tokenised, max_length: int, overlong: Overlong
) -> None:
    """Takes an example into its part: as a row, or as a count of what was dropped."""
    part.format = example.format
    part.ignored.update(example.ignored)
    part.notes.update(example.notes)
    if tokenised.literals:
        part.notes["control_text"] += 1
    if tokenised.reasoning_left_out:
        part.notes["reasoning_left_out"] += 1
    length = _useful(tokenised.trained)
    part.lengths.append(length)
    if length > max_length:
        if overlong == "drop":
            part.dropped["overlong"] += 1
            return
        if overlong == "error":
            problem = f"expected at most {max_length} tokens (data.max_length); found {length}"
            hint = "raise data.max_length, shorten the row, or set data.overlong to drop or cut"
            raise DatasetError.at(example.where, problem, hint)
        length = _useful(tokenised.trained[:max_length])
        part.cut += length > 0
    if length == 0:
        part.dropped["nothing_trained"] += 1
        return
    ids, trained = tokenised.ids[:length], tokenised.trained[:length]
    targets = shift_labels(ids, trained)
    digest = content_digest(example.content)
    arrays = np.array(ids[:-1], np.int32), np.array(targets, np.int32)
    part.rows.append(_Row(*arrays, digest, example.where))


def _useful(trained: Sequence[bool]) -> int:
    """How many tokens it takes to hold the last trained one that has a token before it.

    What follows teaches nothing, so leaving it out changes no loss.

    >>> _useful([False, True, True, False]), _useful([True]), _useful([])
    (3, 0, 0)
    """
    return next((t + 1 for t in range(len(trained) - 1, 0, -1) if trained[t]), 0)


def content_digest(content: Content) -> bytes:
    """SHA-256 of what a row says, whatever its format: equal rows have equal digests."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).digest()


def _rows(part: Sequence[_Row]) -> Rows:
    return Rows.from_pairs((row.ids_T, row.targets_T) for row in part)


def _without_rows(part: _Part) -> Fault:
    if part.records == 0:
        return Fault(part.source.name, "expected at least one record; found none")
    reasons = ", ".join(f"{count} {reason}" for reason, count in part.dropped.items())
    problem = f"expected at least one row to train on; dropped: {reasons}"
    hint = None
    if part.lengths:
        longest = max(part.lengths)
        hint = f"raise data.max_length (the longest conversation has {longest} tokens)"
    return Fault(part.source.name, problem, hint)
