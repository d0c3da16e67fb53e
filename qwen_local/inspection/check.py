"""Result of `data check`: counts, supervised tokens, warnings and faults of each set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qwen_local.datasets.report import Histogram
from qwen_local.inspection.duplicates import Duplicates, Hashes, between, within
from qwen_local.inspection.findings import SetFindings
from qwen_local.inspection.tally import Tally


@dataclass(frozen=True, kw_only=True, slots=True)
class SetCheck:
    """Findings of the training set or the evaluation set."""

    names: tuple[str, ...]
    """Names of the sources."""
    found: SetFindings
    without_rows: tuple[str, ...]
    """Sources without a usable row."""
    duplicates: Duplicates
    """Usable records that repeat an earlier record."""

    @classmethod
    def of(
        cls, names: Iterable[str], found: SetFindings, without_rows: Iterable[str] = ()
    ) -> SetCheck:
        """Find the duplicates within a set."""
        return cls(
            names=tuple(names),
            found=found,
            without_rows=tuple(without_rows),
            duplicates=within(hashes(found)),
        )

    @property
    def refused(self) -> str | None:
        """Reason why training would refuse this set, or None."""
        if self.found.faulty:
            count, total = self.found.faulty, self.found.faults.total
            return f"{plural(total, 'fault')} in {plural(count, 'record')}"
        if self.found.records == 0:
            return "it has no records"
        if self.found.rows == 0:
            return "it has no usable rows"
        if self.without_rows:
            return f"no usable rows in {', '.join(self.without_rows)}"
        return None

    @property
    def labels(self) -> dict[str, int] | None:
        """Number of records per answer, most frequent first, or None if answers are not labels.

        Answers are labels if there are few different ones and each occurs at least twice on
        average.
        """
        counts = self.found.labels
        if not counts or 2 * len(counts) > self.found.usable:
            return None
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    @property
    def lengths(self) -> Histogram:
        """Histogram of row lengths in tokens, before dropping and cutting."""
        return Histogram.of(self.found.lengths)

    @property
    def median_length(self) -> int:
        """Median row length in tokens."""
        return int(np.median(self.found.lengths)) if self.found.lengths else 0

    def to_json(self) -> dict[str, Any]:
        """Return the set as a JSON object."""
        found = self.found
        return {
            "sources": list(self.names),
            "refused": self.refused,
            "rows": found.records,
            "usable": found.usable,
            "faulty": found.faulty,
            "training_rows": found.rows,
            "dropped": dict(found.dropped.counts),
            "cut": found.cut,
            "tokens": found.tokens,
            "supervised_tokens": found.supervised,
            "end_trained": found.ended,
            "labels": self.labels,
            "lengths": {
                **asdict(self.lengths),
                "median": self.median_length,
                "longest": [{"place": place, "tokens": n} for n, place in found.longest],
            },
            "duplicates": self.duplicates.to_json(),
            "faults": _tally(found.faults, "problem"),
            "notes": _tally(found.notes, "note"),
            "ignored_keys": _tally(found.ignored, "key"),
            "control_characters": _tally(found.controls, "character"),
            "secrets": _tally(found.secrets, "kind"),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCheck:
    """Result of checking the training and evaluation data."""

    model: str
    """Model whose tokenizer counts the tokens."""
    train: SetCheck
    eval: SetCheck | None
    shared: Duplicates | None
    """Usable evaluation records that also occur in training; None without evaluation data."""

    @classmethod
    def of(cls, model: str, train: SetCheck, eval: SetCheck | None) -> DataCheck:
        """Find the records that occur in both sets."""
        shared = None if eval is None else between(hashes(eval.found), hashes(train.found))
        return cls(model=model, train=train, eval=eval, shared=shared)

    @property
    def sets(self) -> tuple[SetCheck, ...]:
        """Training set and, if present, evaluation set."""
        return (self.train,) if self.eval is None else (self.train, self.eval)

    @property
    def accepted(self) -> bool:
        """True if training accepts the data unchanged."""
        return all(data_set.refused is None for data_set in self.sets)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `--json`: the training set, with the evaluation set nested."""
        return {
            "accepted": self.accepted,
            "model": self.model,
            "max_length": self.train.found.max_length,
            "overlong": self.train.found.overlong,
            **self.train.to_json(),
            "eval": None if self.eval is None else self.eval.to_json(),
            "shared": None if self.shared is None else self.shared.to_json(),
        }


def hashes(found: SetFindings) -> Hashes:
    """Return the hashes that duplicates are found by."""
    return Hashes(
        same_N=np.array(found.same, np.uint64),
        similar_N=np.array(found.similar, np.uint64),
        places=found.places,
    )


def plural(count: int, noun: str) -> str:
    """Format a count with its noun.

    >>> plural(1, "record"), plural(2000, "record")
    ('1 record', '2,000 records')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _tally(tally: Tally[Any], name: str) -> list[dict[str, Any]]:
    return [
        {
            name: kind,
            "count": count,
            "first": [item if isinstance(item, str) else asdict(item) for item in first],
        }
        for kind, count, first in tally.by_count()
    ]
