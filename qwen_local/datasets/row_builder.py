"""A block of records to rows: what every core does with its share of the data."""

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
from qwen_local.datasets.row_store import RowsMade
from qwen_local.datasets.tokenizer import ChatTokenizer, RowDraft, Thinking, Tokenized, TrainOn
from qwen_local.datasets.trim import Overlong, overlong_fault, trim
from qwen_local.errors import DatasetError, Fault


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """How records become rows."""

    tokenizer: ChatTokenizer
    max_length: int
    overlong: Overlong
    train_on: TrainOn
    thinking: Thinking


@dataclass(kw_only=True, slots=True)
class Made:
    """What has become of the records so far, beside the rows."""

    records: int = 0
    usable: int = 0
    """Records that gave at least one row."""
    format: str = "auto"
    """Of the records, once one was read."""
    cut: int = 0
    """Rows that were shortened."""
    longest: int = 0
    """Tokens of the longest row, dropped or not."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Rows by the upper edge of their bin in a histogram, dropped or not."""
    dropped: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    openings: Counter[str] = field(default_factory=Counter)
    """Rows by what a generation prompt holds of their last turn."""
    faults: list[Fault] = field(default_factory=list)

    def merge(self, other: Made) -> None:
        """Take in what became of the records that come next."""
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
        """In JSON's types; only what has no fault is written down."""
        assert not self.faults
        return {name: getattr(self, name) for name in self.__slots__ if name != "faults"}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """What `to_json` wrote."""
        lengths = {int(edge): count for edge, count in values.pop("lengths").items()}
        made = cls(**values, lengths=Counter(lengths))
        for name in ("dropped", "ignored", "notes", "openings"):
            setattr(made, name, Counter(getattr(made, name)))
        return made

    @property
    def histogram(self) -> Histogram:
        """How long the rows are."""
        return Histogram.from_bins(self.lengths)


Block = Sequence[Example | Faults]

BLOCK, BLOCK_SIZE = 1_000, 4 * 2**20
"""Records that a process works on at a time, or characters, whichever is reached first."""


def blocks(examples: Iterable[Example | Faults]) -> Iterator[Block]:
    """All records of a source, in blocks."""
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


def drafts_of(making: Making, example: Example) -> list[RowDraft]:
    """The rows of an example before they are encoded.

    Raises:
        DatasetError: with the place of the example and the field in it.
    """
    try:
        if isinstance(example.content, str):
            return [making.tokenizer.draft_text(example.content)]
        return making.tokenizer.draft_conversation(
            example.content,
            tools=example.tools,
            untrained=example.untrained,
            train_on=making.train_on,
            thinking=making.thinking,
        )
    except DatasetError as error:
        raise DatasetError(
            replace(fault, where=f"{example.where}: {fault.where}") for fault in error.faults
        ) from None


def make(making: Making, block: Block) -> tuple[Made, pa.RecordBatch]:
    """The rows of a block of records, and what became of all of them."""
    made, rows = Made(), RowsMade.empty()
    for example, tokenized in tokenized_block(making, block):
        made.records += 1
        if isinstance(example, tuple):
            made.faults += example
            continue
        if made.format == "auto":
            made.format = example.format
        made.ignored.update(example.ignored)
        made.notes.update(example.notes)
        if example.says_nothing:
            made.dropped["empty_answer"] += 1
            continue
        if not tokenized:
            made.dropped["nothing_trained"] += 1
        made.notes.update(noted(tokenized))
        before = len(rows.number)
        content = content_digest(example)
        for row in tokenized:
            _add(made, rows, example.where, content, row, making)
        made.usable += len(rows.number) > before
    return made, rows.batch()


def tokenized_block(
    making: Making, block: Block
) -> list[tuple[Example | Faults, Sequence[Tokenized]]]:
    """Every record of a block with its rows in tokens, however long; or what is wrong with it."""
    found: list[tuple[Example | Faults, int]] = []
    drafts: list[RowDraft] = []
    for example in block:
        before = len(drafts)
        if not isinstance(example, tuple) and not example.says_nothing:
            try:
                drafts += drafts_of(making, example)
            except DatasetError as error:
                example = error.faults
        found.append((example, len(drafts) - before))
    rows = iter(making.tokenizer.encode(drafts))
    return [(example, [next(rows) for _ in range(count)]) for example, count in found]


def content_digest(example: Example) -> int:
    """64 bits of what a record says, whatever its format: equal records have equal digests."""
    said: Any = example.content
    if example.tools or example.untrained:
        said = [example.content, example.tools, sorted(example.untrained)]
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:8])


def noted(tokenized: Sequence[Tokenized]) -> list[str]:
    """What is worth a word about the rows of a record."""
    notes = [
        ("control_text", any(row.literals for row in tokenized)),
        ("reasoning_left_out", any(row.reasoning_left_out for row in tokenized)),
        ("several_rows", len(tokenized) > 1),
    ]
    return [name for name, holds in notes if holds]


def _add(
    made: Made, rows: RowsMade, where: str, content: int, row: Tokenized, making: Making
) -> None:
    """Takes a row in, or counts why it is dropped."""
    kept = trim(row.trained, max_length=making.max_length, overlong=making.overlong)
    made.lengths[Histogram.edge(kept.whole)] += 1
    made.longest = max(made.longest, kept.whole)
    if kept.dropped:
        if kept.dropped == "overlong" and making.overlong == "error":
            made.faults.append(overlong_fault(where, kept.whole, making.max_length))
        else:
            made.dropped[kept.dropped] += 1
        return
    made.cut += kept.cut
    made.openings[row.opening] += 1
    number = int(where.rpartition(":")[2])
    ids, trained = row.ids[: kept.kept], row.trained[: kept.kept]
    rows.add(ids, trained, content, number)
