"""Report on prepared data: the content of a run's data.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qwen_local.rows.rows import AnyRows


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Histogram of lengths in tokens."""

    edges: list[int]
    """Bin edges 0, 32, 64, 128, ...; each later edge is twice the previous one."""
    counts: list[int]
    """counts[i] is the number of lengths above edges[i] and up to edges[i + 1]."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Histogram:
        """Make the histogram of these lengths.

        >>> Histogram.of([10, 32, 33, 200])
        Histogram(edges=[0, 32, 64, 128, 256], counts=[2, 1, 0, 1])
        """
        return cls.from_bins(Counter(map(cls.edge, lengths)))

    @classmethod
    def from_bins(cls, bins: Mapping[int, int]) -> Histogram:
        """Make the histogram from counts by upper edge."""
        edges = [0, 32]
        while edges[-1] < max(bins, default=0):
            edges.append(2 * edges[-1])
        return cls(edges=edges, counts=[bins.get(edge, 0) for edge in edges[1:]])

    @classmethod
    def sum(cls, parts: Iterable[Histogram]) -> Histogram:
        """Add histograms.

        >>> Histogram.sum([Histogram.of([10, 70]), Histogram.of([20])])
        Histogram(edges=[0, 32, 64, 128], counts=[2, 0, 1])
        """
        bins: Counter[int] = Counter()
        for part in parts:
            bins.update(dict(zip(part.edges[1:], part.counts, strict=True)))
        return cls.from_bins(bins)

    @staticmethod
    def edge(length: int) -> int:
        """Return the upper edge of a length's bin.

        >>> Histogram.edge(32), Histogram.edge(33), Histogram.edge(0)
        (32, 64, 32)
        """
        return max(32, 1 << (length - 1).bit_length()) if length else 32


@dataclass(frozen=True, kw_only=True, slots=True)
class SetReport:
    """Counts of rows as the engine sees them: the last token of a row is only a target."""

    rows: int
    tokens: int
    """Number of positions."""
    supervised_tokens: int
    """Number of positions whose next token is supervised."""

    @classmethod
    def of(cls, rows: AnyRows) -> SetReport:
        """Count the rows."""
        return cls(rows=len(rows), tokens=rows.tokens, supervised_tokens=rows.supervised)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReport:
    """Report on one file, or on one split of a Hub data set."""

    name: str
    sha256: str | None
    commit: str | None
    format: str
    records: int
    usable: SetReport
    """Usable rows, before the evaluation split."""
    dropped: dict[str, int]
    """Number of dropped rows by reason: `overlong`, `empty_answer`, `nothing_trained`."""
    cut: int
    """Number of rows that were cut to `max_length`."""
    longest: int
    """Length of the longest conversation in tokens, before dropping."""
    lengths: Histogram
    """Lengths of all conversations, before dropping and cutting."""
    ignored_keys: dict[str, int]
    """Number of records by unknown key."""
    notes: dict[str, int]
    """Number of records by warning.

    `roles_not_alternating`, `ends_without_answer`; `control_text`: the data contain the text of a
    control token, which is encoded as plain text; `reasoning_left_out`: the chat template omits
    some of the assistant's reasoning; `several_rows`: a conversation became several rows, because
    the chat template writes earlier turns differently from the last.
    """
    duplicates: int
    """Number of usable records with the same content as an earlier record."""
    weight: float
    """Number of times each row counts in an epoch."""
    limit: int | None
    """Maximum number of records to read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """Report on all sources of a run, and on its training and evaluation sets."""

    sources: list[SourceReport]
    """Training sources, then evaluation sources."""
    train: SetReport
    eval: SetReport | None
    split: float | None
    """Requested evaluation fraction if the training source was split, or None."""
    shared: int
    """Number of evaluation rows whose content is also in the training set."""
    max_length: int
    overlong: str
    train_on: str
    thinking: Literal["auto", "keep", "drop", "empty"]
    enable_thinking: bool | None
    """`enable_thinking` value whose generation prompt matches most training rows."""
    template_sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return asdict(self)

    def describe(self) -> str:
        """Summarize sources, rows and dropped rows in one line."""
        dropped: Counter[str] = Counter()
        ignored: set[str] = set()
        for source in self.sources:
            dropped.update(source.dropped)
            ignored.update(source.ignored_keys)
        held_out = 0 if self.eval is None else self.eval.rows
        names = ", ".join(source.name for source in self.sources)
        parts = [f"{names}: {self.train.rows:,} training rows, {held_out:,} evaluation rows"]
        if dropped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
            parts.append(f"dropped: {reasons}")
        if cut := sum(source.cut for source in self.sources):
            parts.append(f"cut to {self.max_length:,} tokens: {cut:,}")
        if self.shared:
            parts.append(f"{self.shared:,} evaluation rows are also in the training set")
        if ignored:
            parts.append(f"ignored keys: {', '.join(sorted(ignored))}")
        return "; ".join(parts)
