"""Tokenize blocks of examples into rows: the work that each core does on its share of the data."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pyarrow as pa  # type: ignore[import-untyped]

from qwen_local.datasets.formats import Example
from qwen_local.datasets.record_files import Faults
from qwen_local.datasets.report import Histogram
from qwen_local.datasets.row_store import BatchBuilder
from qwen_local.datasets.tokenizer import ChatTokenizer, RowDraft, Thinking, Tokenized, TrainOn
from qwen_local.datasets.trim import Overlong, overlong_fault, trim
from qwen_local.errors import DatasetError, Fault


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeConfig:
    """Everything that the rows of an example depend on."""

    tokenizer: ChatTokenizer
    max_length: int
    """Longest row in tokens, counted up to the last supervised one."""
    overlong: Overlong
    """What happens to longer rows: `cut` keeps the first `max_length` tokens."""
    train_on: TrainOn
    """Every assistant turn, or the last one alone."""
    thinking: Thinking = "auto"
    """How the assistant's reasoning is treated."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """Counts and faults of the records that were read, beside their rows."""

    records: int = 0
    usable: int = 0
    """Number of records with at least one row."""
    format: str = "auto"
    """Format of the records, once one was read."""
    cut: int = 0
    """Number of rows that were cut."""
    longest: int = 0
    """Length of the longest row in tokens, dropped or not."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Number of rows by the upper edge of their histogram bin, dropped or not."""
    dropped: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    openings: Counter[str] = field(default_factory=Counter)
    """Number of rows by the opening of their last turn that a generation prompt contains."""
    faults: list[Fault] = field(default_factory=list)

    def merge(self, other: Outcome) -> None:
        """Add the outcome of the records that come next."""
        self.records += other.records
        self.usable += other.usable
        self.format = other.format if self.format == "auto" else self.format
        self.cut += other.cut
        self.longest = max(self.longest, other.longest)
        self.lengths.update(other.lengths)
        self.dropped.update(other.dropped)
        self.ignored.update(other.ignored)
        self.notes.update(other.notes)
        self.openings.update(other.openings)
        self.faults += other.faults

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; only an outcome without faults is written."""
        assert not self.faults
        return {name: getattr(self, name) for name in self.__slots__ if name != "faults"}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what `to_json` returned."""
        lengths = {int(edge): count for edge, count in values.pop("lengths").items()}
        outcome = cls(**values, lengths=Counter(lengths))
        for name in ("dropped", "ignored", "notes", "openings"):
            setattr(outcome, name, Counter(getattr(outcome, name)))
        return outcome

    @property
    def histogram(self) -> Histogram:
        """Histogram of row lengths."""
        return Histogram.from_bins(self.lengths)


Block = Sequence[Example | Faults]

BLOCK, BLOCK_SIZE = 1_000, 4 * 2**20
"""Size of a block in records, or in characters, whichever is reached first."""


def blocks(examples: Iterable[Example | Faults]) -> Iterator[Block]:
    """Yield all records of a source in blocks."""
    block: list[Example | Faults] = []
    size = 0
    for example in examples:
        block.append(example)
        size += 0 if isinstance(example, tuple) else _size(example)
        if len(block) == BLOCK or size >= BLOCK_SIZE:
            yield block
            block, size = [], 0
    if block:
        yield block


def _size(example: Example) -> int:
    if isinstance(example.content, str):
        return len(example.content)
    return sum(len(message["content"]) for message in example.content)


def draft_rows(config: TokenizeConfig, example: Example) -> list[RowDraft]:
    """Return the rows of an example before they are encoded.

    Raises:
        DatasetError: with the place of the example and the field in it.
    """
    try:
        if isinstance(example.content, str):
            return [config.tokenizer.draft_text(example.content)]
        return config.tokenizer.draft_conversation(
            example.content,
            tools=example.tools,
            untrained=example.untrained,
            train_on=config.train_on,
            thinking=config.thinking,
        )
    except DatasetError as error:
        raise DatasetError(
            replace(fault, where=f"{example.where}: {fault.where}") for fault in error.faults
        ) from None


def tokenize_block(config: TokenizeConfig, block: Block) -> tuple[Outcome, pa.RecordBatch]:
    """Return the outcome of a block of records, and its rows."""
    outcome, rows = Outcome(), BatchBuilder.empty()
    for example, tokenized in tokenize_examples(config, block):
        outcome.records += 1
        if isinstance(example, tuple):
            outcome.faults += example
            continue
        if outcome.format == "auto":
            outcome.format = example.format
        outcome.ignored.update(example.ignored)
        outcome.notes.update(example.notes)
        if example.empty:
            outcome.dropped["empty_answer"] += 1
            continue
        if not tokenized:
            outcome.dropped["nothing_trained"] += 1
        outcome.notes.update(noted(tokenized))
        before = len(rows.number)
        content = content_digest(example)
        for row in tokenized:
            _add(outcome, rows, example.where, content, row, config)
        outcome.usable += len(rows.number) > before
    return outcome, rows.batch()


def tokenize_examples(
    config: TokenizeConfig, block: Block
) -> list[tuple[Example | Faults, Sequence[Tokenized]]]:
    """Return each record of a block with its tokenized rows of any length, or its faults."""
    found: list[tuple[Example | Faults, int]] = []
    drafts: list[RowDraft] = []
    for example in block:
        before = len(drafts)
        if not isinstance(example, tuple) and not example.empty:
            try:
                drafts += draft_rows(config, example)
            except DatasetError as error:
                example = error.faults
        found.append((example, len(drafts) - before))
    rows = iter(config.tokenizer.encode(drafts))
    return [(example, [next(rows) for _ in range(count)]) for example, count in found]


def content_digest(example: Example) -> int:
    """Return a 64-bit hash of an example's content, the same in every format."""
    content: Any = example.content
    if example.tools or example.untrained:
        content = [example.content, example.tools, sorted(example.untrained)]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:8])


def noted(tokenized: Sequence[Tokenized]) -> list[str]:
    """Return the notes about the rows of a record."""
    notes = [
        ("control_text", any(row.literals for row in tokenized)),
        ("reasoning_left_out", any(row.reasoning_left_out for row in tokenized)),
        ("several_rows", len(tokenized) > 1),
    ]
    return [name for name, holds in notes if holds]


def _add(
    outcome: Outcome,
    rows: BatchBuilder,
    where: str,
    content: int,
    row: Tokenized,
    config: TokenizeConfig,
) -> None:
    """Add a row, or count why it is dropped."""
    kept = trim(row.supervised, max_length=config.max_length, overlong=config.overlong)
    outcome.lengths[Histogram.edge(kept.whole)] += 1
    outcome.longest = max(outcome.longest, kept.whole)
    if kept.dropped:
        if kept.dropped == "overlong" and config.overlong == "error":
            outcome.faults.append(overlong_fault(where, kept.whole, config.max_length))
        else:
            outcome.dropped[kept.dropped] += 1
        return
    outcome.cut += kept.cut
    outcome.openings[row.opening] += 1
    number = int(where.rpartition(":")[2])
    rows.add(row.ids[: kept.kept], row.supervised[: kept.kept], content, number)
