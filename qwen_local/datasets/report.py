"""What became of the data: the content of a run's data.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qwen_local.rows.rows import AnyRows


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """How long the conversations are, in tokens."""

    edges: list[int]
    """0, 32, 64, 128, ...: each but the first twice the one before."""
    counts: list[int]
    """counts[i] conversations have more than edges[i] and at most edges[i + 1] tokens."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Histogram:
        """Count the lengths.

        >>> Histogram.of([10, 32, 33, 200])
        Histogram(edges=[0, 32, 64, 128, 256], counts=[2, 1, 0, 1])
        """
        return cls.from_bins(Counter(map(cls.edge, lengths)))

    @classmethod
    def from_bins(cls, bins: Mapping[int, int]) -> Histogram:
        """The histogram of what was counted by upper edge."""
        edges = [0, 32]
        while edges[-1] < max(bins, default=0):
            edges.append(2 * edges[-1])
        return cls(edges=edges, counts=[bins.get(edge, 0) for edge in edges[1:]])

    @staticmethod
    def edge(length: int) -> int:
        """The upper edge of a length's bin.

        >>> Histogram.edge(32), Histogram.edge(33), Histogram.edge(0)
        (32, 64, 32)
        """
        return max(32, 1 << (length - 1).bit_length()) if length else 32


@dataclass(frozen=True, kw_only=True, slots=True)
class SetReport:
    """Rows as the engine sees them: the last token of a row is a target and no position."""

    rows: int
    tokens: int
    """Positions."""
    supervised_tokens: int
    """Positions whose next token is trained."""

    @classmethod
    def of(cls, rows: AnyRows) -> SetReport:
        """Count the rows."""
        return cls(rows=len(rows), tokens=rows.tokens, supervised_tokens=rows.supervised)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReport:
    """One file, or one split of a data set on the hub."""

    name: str
    sha256: str | None
    commit: str | None
    format: str
    records: int
    usable: SetReport
    """Before rows are split off for evaluation."""
    dropped: dict[str, int]
    """Rows that were left out, by reason: `overlong`, `empty_answer`, `nothing_trained`."""
    cut: int
    """Rows that were shortened to the longest length allowed."""
    longest: int
    """Tokens of the longest conversation, dropped or not."""
    lengths: Histogram
    """Of all conversations, dropped or not, before any was cut."""
    ignored_keys: dict[str, int]
    """Keys without a meaning here, and how many records have them."""
    notes: dict[str, int]
    """What is allowed but worth a word, and how many records it concerns.

    `roles_not_alternating`, `ends_without_answer`; `control_text`: the data hold the text of a
    control token, which was encoded as plain text; `reasoning_left_out`: the chat template did
    not write all of the assistant's reasoning; `several_rows`: a conversation became several rows,
    as the chat template writes an earlier turn otherwise than the last.
    """
    duplicates: int
    """Usable records that have the same content as an earlier one."""
    weight: float
    """How often the rows count in an epoch."""
    limit: int | None
    """Records that were to be read, the first ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """All sources of a run and the two sets of rows made of them."""

    sources: list[SourceReport]
    """The training source and, where there is one, the evaluation source."""
    train: SetReport
    eval: SetReport | None
    split: float | None
    """The share for evaluation that was asked of the training source, where it was split."""
    shared: int
    """Evaluation rows whose content is also trained on."""
    max_length: int
    overlong: str
    train_on: str
    thinking: Literal["auto", "keep", "drop", "empty"]
    enable_thinking: bool | None
    """What a generation prompt is asked for, to begin answers as most of them were trained."""
    template_sha256: str

    def to_json(self) -> dict[str, Any]:
        """The report in JSON's types."""
        return asdict(self)

    def describe(self) -> str:
        """What a person must know of it: the source, the rows, and what is not among them."""
        dropped: Counter[str] = Counter()
        ignored: set[str] = set()
        for source in self.sources:
            dropped.update(source.dropped)
            ignored.update(source.ignored_keys)
        held_out = 0 if self.eval is None else self.eval.rows
        names = ", ".join(source.name for source in self.sources)
        said = [f"{names}: {self.train.rows:,} rows to train on, {held_out:,} to evaluate on"]
        if dropped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
            said.append(f"dropped: {reasons}")
        if cut := sum(source.cut for source in self.sources):
            said.append(f"cut to {self.max_length:,} tokens: {cut:,}")
        if self.shared:
            said.append(f"{self.shared:,} of the rows to evaluate on are trained on, too")
        if ignored:
            said.append(f"keys ignored: {', '.join(sorted(ignored))}")
        return "; ".join(said)
