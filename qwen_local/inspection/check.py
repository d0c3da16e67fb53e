"""What `data check` finds out: what the data hold, what of it is learned, what to look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qwen_local.datasets.report import Histogram
from qwen_local.inspection.duplicates import Duplicates, Hashes, between, within
from qwen_local.inspection.findings import Findings
from qwen_local.inspection.tally import Tally


@dataclass(frozen=True, kw_only=True, slots=True)
class SetCheck:
    """The records of one side: those to train on, or those to evaluate on."""

    names: tuple[str, ...]
    """Of the sources."""
    found: Findings
    without_rows: tuple[str, ...]
    """Those of them that no row is left of."""
    duplicates: Duplicates
    """Usable records that repeat an earlier one."""

    @classmethod
    def of(
        cls, names: Iterable[str], found: Findings, without_rows: Iterable[str] = ()
    ) -> SetCheck:
        """Compare the records with each other."""
        return cls(
            names=tuple(names),
            found=found,
            without_rows=tuple(without_rows),
            duplicates=within(hashes(found)),
        )

    @property
    def refused(self) -> str | None:
        """Why training would refuse this set, or None."""
        if self.found.faulty:
            count, total = self.found.faulty, self.found.faults.total
            return f"{many(total, 'fault')} in {many(count, 'record')}"
        if self.found.records == 0:
            return "there is no record"
        if self.found.rows == 0:
            return "no row is left to learn from"
        if self.without_rows:
            return f"no row is left of {', '.join(self.without_rows)}"
        return None

    @property
    def labels(self) -> dict[str, int] | None:
        """How often each answer occurs, the most frequent first, where answers are labels.

        They are where there are few of them and each stands for two records or more, on average.
        """
        counts = self.found.labels
        if not counts or 2 * len(counts) > self.found.usable:
            return None
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    @property
    def lengths(self) -> Histogram:
        """How long the rows are, dropped or not, before any is cut."""
        return Histogram.of(self.found.lengths)

    @property
    def middle(self) -> int:
        """Tokens of a row in the middle, when all are ordered by length."""
        return int(np.median(self.found.lengths)) if self.found.lengths else 0

    def to_json(self) -> dict[str, Any]:
        """The set in JSON's types."""
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
                "median": self.middle,
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
class Check:
    """All that a check of the data has found."""

    model: str
    """In whose tokens lengths are counted."""
    train: SetCheck
    eval: SetCheck | None
    shared: Duplicates | None
    """Usable evaluation records that are trained on; None without evaluation data."""

    @classmethod
    def of(cls, model: str, train: SetCheck, eval: SetCheck | None) -> Check:
        """Compare the two sets."""
        shared = None if eval is None else between(hashes(eval.found), hashes(train.found))
        return cls(model=model, train=train, eval=eval, shared=shared)

    @property
    def sides(self) -> tuple[SetCheck, ...]:
        """The sets that there are."""
        return (self.train,) if self.eval is None else (self.train, self.eval)

    @property
    def accepted(self) -> bool:
        """Whether training takes these data as they are."""
        return all(side.refused is None for side in self.sides)

    def to_json(self) -> dict[str, Any]:
        """The report in JSON's types: the training data, and the evaluation data inside."""
        return {
            "accepted": self.accepted,
            "model": self.model,
            "max_length": self.train.found.max_length,
            "overlong": self.train.found.overlong,
            **self.train.to_json(),
            "eval": None if self.eval is None else self.eval.to_json(),
            "shared": None if self.shared is None else self.shared.to_json(),
        }


def hashes(found: Findings) -> Hashes:
    """What of the records is compared."""
    return Hashes(
        same_N=np.array(found.same, np.uint64),
        similar_N=np.array(found.similar, np.uint64),
        places=found.places,
    )


def many(count: int, what: str) -> str:
    """A number of things.

    >>> many(1, "record"), many(2000, "record")
    ('1 record', '2,000 records')
    """
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _tally(tally: Tally[Any], name: str) -> list[dict[str, Any]]:
    return [
        {
            name: kind,
            "count": count,
            "first": [item if isinstance(item, str) else asdict(item) for item in first],
        }
        for kind, count, first in tally.by_count()
    ]
