"""What a check finds, gathered block by block.

Blocks of the data can be looked at by different processes: a `Findings` pickles small, and merging
those of all blocks in order gives what one process would have found. A row costs 28 bytes.
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

MOST_LABELS = 20
"""More different answers than these are no labels."""
LONGEST_LABEL = 200
"""Nor is an answer with more characters."""
LONGEST_ROWS = 5
"""So many of the longest rows are named."""


@dataclass(frozen=True, slots=True)
class Secret:
    """What looks like a secret: never the secret itself."""

    place: str
    begins: str
    """Its first characters."""


@dataclass(kw_only=True, slots=True)
class Findings:
    """What was found in the records so far; `add` and `refuse` take one record each.

    A record becomes one row, or several; a row is usable unless it is dropped.
    """

    max_length: int
    """Tokens of the longest row allowed."""
    overlong: Overlong
    """What becomes of longer ones."""
    ends: tuple[int, ...]
    """Ids of the tokens that end an answer or a text."""

    records: int = 0
    faulty: int = 0
    """Records with a fault."""
    usable: int = 0
    """Records that give at least one row."""
    rows: int = 0
    """Usable rows."""
    cut: int = 0
    """Usable rows that were shortened."""
    tokens: int = 0
    """Positions of usable rows: the last token of a row is a target and no position."""
    supervised: int = 0
    """Positions whose next token is trained."""
    ended: int = 0
    """Usable rows whose last trained token is an end token."""
    faults: Tally[Fault] = field(default_factory=Tally)
    dropped: Tally[str] = field(default_factory=Tally)
    """Rows by reason, with their places."""
    notes: Tally[str] = field(default_factory=Tally)
    """Records by what is worth a word, with their places."""
    ignored: Tally[str] = field(default_factory=Tally)
    """Records by key without a meaning."""
    controls: Tally[str] = field(default_factory=Tally)
    """Records by control character."""
    secrets: Tally[Secret] = field(default_factory=Tally)
    lengths: array[int] = field(default_factory=lambda: array("I"))
    """Tokens of every row, dropped or not, before any was cut."""
    longest: list[tuple[int, str]] = field(default_factory=list)
    """(tokens, place) of the longest rows, the longest first, of equal ones the earliest."""
    labels: dict[str, int] | None = field(default_factory=dict)
    """The answers of usable records; None where they are too many or too long."""
    same: array[int] = field(default_factory=lambda: array("Q"))
    """A hash of each usable record: equal where all that they say is equal."""
    similar: array[int] = field(default_factory=lambda: array("Q"))
    """The same without case, white space and compatible characters."""
    places: Places = field(default_factory=Places)
    """Of the usable records."""

    @classmethod
    def begin(cls, making: TokenizeConfig) -> Self:
        """Nothing found yet in data that become rows in this way."""
        return cls(
            max_length=making.max_length,
            overlong=making.overlong,
            ends=making.tokenizer.stop_ids,
        )

    def refuse(self, faults: Faults) -> None:
        """Take in a record that cannot be used."""
        self.records += 1
        self._fault(faults)

    def add(self, example: Example, rows: Sequence[Tokenized]) -> None:
        """Take in a record and the rows it becomes; none where `example.says_nothing`."""
        self.records += 1
        self._look_at(example)
        if example.says_nothing:
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
        """Take in what was found in the records that come next."""
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

    def _look_at(self, example: Example) -> None:
        for key in example.ignored:
            self.ignored.add(key, example.where)
        for note in example.notes:
            self.notes.add(note, example.where)
        text = text_of([example.content, example.tools])
        for kind in control_characters(text):
            self.controls.add(kind, example.where)
        for kind, begins in secrets(text):
            self.secrets.add(kind, Secret(example.where, begins))

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
        self.similar.append(content_digest(_alike(example)))
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
        if len(self.labels) > MOST_LABELS:
            self.labels = None


def look(making: TokenizeConfig, block: Block) -> Findings:
    """What is found in a block of records."""
    found = Findings.begin(making)
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
    """The last answer of a conversation, where it can be a label."""
    if isinstance(example.content, str):
        return None
    answers = [message for message in example.content if message["role"] == "assistant"]
    text: str = answers[-1]["content"]
    return text if 0 < len(text) <= LONGEST_LABEL else None


def _alike(example: Example) -> Example:
    """The example as it is compared with others that are similar."""
    return replace(
        example, content=normalized(example.content), tools=tuple(normalized(example.tools))
    )
