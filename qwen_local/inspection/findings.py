"""Findings of `data check`, collected block by block.

Different processes can inspect different blocks of the data: `SetFindings` is small to pickle, and
merging the findings of all blocks in order gives the result of a single process. A row takes 28
bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import nlargest
from typing import Self

from qwen_local.datasets.formats import Example
from qwen_local.datasets.record_files import Faults
from qwen_local.datasets.row_builder import (
    Block,
    TokenizeConfig,
    content_digest,
    noted,
    tokenize_examples,
)
from qwen_local.datasets.tokenizer import Tokenized
from qwen_local.datasets.trim import Overlong, Trim, overlong_fault, trim
from qwen_local.errors import Fault
from qwen_local.inspection.kinds import kind_of
from qwen_local.inspection.scan import control_characters, normalized, secrets, text_of
from qwen_local.inspection.tally import Places, Tally

MAX_LABELS = 20
"""Maximum number of different answers that still count as labels."""
MAX_LABEL_CHARACTERS = 200
"""Maximum length of an answer that still counts as a label."""
LONGEST_ROWS = 5
"""Number of longest rows that are reported."""


@dataclass(frozen=True, slots=True)
class Secret:
    """Place and first characters of a likely secret; never the whole secret."""

    place: str
    prefix: str
    """First characters of the secret."""


@dataclass(kw_only=True, slots=True)
class SetFindings:
    """Findings of the records so far; `add` and `refuse` take one record each.

    A record becomes one or more rows. A row is usable unless it is dropped.
    """

    max_length: int
    """Maximum row length in tokens."""
    overlong: Overlong
    """Action for longer rows."""
    ends: tuple[int, ...]
    """Ids of the tokens that end an answer or a text."""

    records: int = 0
    """Number of records."""
    faulty: int = 0
    """Number of records with a fault."""
    usable: int = 0
    """Number of records with at least one usable row."""
    rows: int = 0
    """Number of usable rows."""
    cut: int = 0
    """Number of usable rows that were shortened."""
    tokens: int = 0
    """Number of positions in usable rows; the last token of a row is only a target."""
    supervised: int = 0
    """Number of positions whose next token is supervised."""
    ended: int = 0
    """Number of usable rows whose last supervised token is an end token."""
    faults: Tally[Fault] = field(default_factory=Tally)
    """Faults by kind."""
    dropped: Tally[str] = field(default_factory=Tally)
    """Places of dropped rows, by reason."""
    notes: Tally[str] = field(default_factory=Tally)
    """Places of records with a note, by note."""
    ignored: Tally[str] = field(default_factory=Tally)
    """Places of records with an unknown key, by key."""
    controls: Tally[str] = field(default_factory=Tally)
    """Places of records with a control character, by character."""
    secrets: Tally[Secret] = field(default_factory=Tally)
    """Likely secrets by kind."""
    lengths: array[int] = field(default_factory=lambda: array("I"))
    """Length of every row in tokens, before dropping and cutting."""
    longest: list[tuple[int, str]] = field(default_factory=list)
    """(tokens, place) of the longest rows, longest first; of equal lengths the earliest first."""
    labels: dict[str, int] | None = field(default_factory=dict)
    """Number of usable records by answer; None if answers are too many or too long."""
    same: array[int] = field(default_factory=lambda: array("Q"))
    """Hash of each usable record's content."""
    similar: array[int] = field(default_factory=lambda: array("Q"))
    """Hash of each usable record's normalized content."""
    places: Places = field(default_factory=Places)
    """Places of the usable records."""

    @classmethod
    def empty(cls, making: TokenizeConfig) -> Self:
        """Make findings without any records."""
        return cls(
            max_length=making.max_length,
            overlong=making.overlong,
            ends=making.tokenizer.stop_ids,
        )

    def refuse(self, faults: Faults) -> None:
        """Add an invalid record."""
        self.records += 1
        self._fault(faults)

    def add(self, example: Example, rows: Sequence[Tokenized]) -> None:
        """Add a record with its rows (none if `example.empty`)."""
        self.records += 1
        self._inspect_text(example)
        if example.empty:
            self.dropped.add("empty_answer", example.where)
            return
        if not rows:
            self.dropped.add("nothing_trained", example.where)
        too_long: list[Fault] = []
        before = self.rows
        for row in rows:
            kept = self._measure(row, example.where)
            if kept.dropped == "overlong" and self.overlong == "error":
                too_long.append(overlong_fault(example.where, kept.whole, self.max_length))
            elif kept.dropped:
                self.dropped.add(kept.dropped, example.where)
        for note in noted(rows):
            self.notes.add(note, example.where)
        if too_long:
            self._fault(too_long)
        if self.rows > before:
            self._use(example)

    def merge(self, other: Self) -> None:
        """Add the findings of the records that follow."""
        for count in COUNTS:
            setattr(self, count, getattr(self, count) + getattr(other, count))
        for tally in TALLIES:
            getattr(self, tally).merge(getattr(other, tally))
        for packed in PACKED:
            getattr(self, packed).extend(getattr(other, packed))
        self._keep_longest(other.longest)
        self._count_labels(other.labels)

    # --- one record ---

    def _fault(self, faults: Sequence[Fault]) -> None:
        self.faulty += 1
        for fault in faults:
            self.faults.add(kind_of(fault.problem), fault)

    def _inspect_text(self, example: Example) -> None:
        for key in example.ignored:
            self.ignored.add(key, example.where)
        for note in example.notes:
            self.notes.add(note, example.where)
        text = text_of([example.content, example.tools])
        for kind in control_characters(text):
            self.controls.add(kind, example.where)
        for kind, prefix in secrets(text):
            self.secrets.add(kind, Secret(example.where, prefix))

    def _measure(self, row: Tokenized, place: str) -> Trim:
        kept = trim(row.supervised, max_length=self.max_length, overlong=self.overlong)
        self.lengths.append(kept.whole)
        self._keep_longest([(kept.whole, place)])
        if kept.kept:
            self.rows += 1
            self.cut += kept.cut
            self.tokens += kept.kept - 1
            self.supervised += sum(row.supervised[1 : kept.kept])
            self.ended += row.ids[kept.kept - 1] in self.ends
        return kept

    def _use(self, example: Example) -> None:
        self.usable += 1
        self.same.append(content_digest(example))
        self.similar.append(content_digest(_normalized(example)))
        self.places.append(example.where)
        if self.labels is not None:
            label = _answer(example)
            self._count_labels(None if label is None else {label: 1})

    def _keep_longest(self, rows: Sequence[tuple[int, str]]) -> None:
        if len(self.longest) < LONGEST_ROWS or (rows and rows[0][0] > self.longest[-1][0]):
            self.longest = nlargest(LONGEST_ROWS, [*self.longest, *rows], key=lambda row: row[0])

    def _count_labels(self, labels: dict[str, int] | None) -> None:
        if self.labels is None or labels is None:
            self.labels = None
            return
        for label, count in labels.items():
            self.labels[label] = self.labels.get(label, 0) + count
        if len(self.labels) > MAX_LABELS:
            self.labels = None


def inspect_block(making: TokenizeConfig, block: Block) -> SetFindings:
    """Inspect one block of records."""
    found = SetFindings.empty(making)
    for example, rows in tokenize_examples(making, block):
        if isinstance(example, tuple):
            found.refuse(example)
        else:
            found.add(example, rows)
    return found


COUNTS = ("records", "faulty", "usable", "rows", "cut", "tokens", "supervised", "ended")
TALLIES = ("faults", "dropped", "notes", "ignored", "controls", "secrets")
PACKED = ("lengths", "same", "similar", "places")


def _answer(example: Example) -> str | None:
    """Return the last answer of a conversation if it can be a label."""
    if isinstance(example.content, str):
        return None
    answers = [message for message in example.content if message["role"] == "assistant"]
    text: str = answers[-1]["content"]
    return text if 0 < len(text) <= MAX_LABEL_CHARACTERS else None


def _normalized(example: Example) -> Example:
    """Return the example with normalized text, for finding near duplicates."""
    return replace(
        example, content=normalized(example.content), tools=tuple(normalized(example.tools))
    )
