"""Duplicate records, within a set and between two sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_local.inspection.tally import ITEMS_PER_KIND, Places


@dataclass(frozen=True, kw_only=True, slots=True)
class Hashes:
    """Hashes of a set of records; see `SetFindings`. N = records."""

    same_N: np.ndarray
    """uint64 [N]: hash of the exact content."""
    similar_N: np.ndarray
    """uint64 [N]: hash of the normalized content."""
    places: Places


Pairs = tuple[tuple[str, str], ...]
"""(place of a record, place of the record that it repeats)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Numbers of duplicate records, with the first ones."""

    exact: int
    """Number of records with identical content."""
    similar: int
    """Number of records with the same normalized content, including the exact ones."""
    first_exact: Pairs
    first_similar: Pairs
    """First pairs that are similar but not identical."""

    def to_json(self) -> dict[str, Any]:
        """Return the duplicates as a JSON object."""
        pairs = [*self.first_exact, *self.first_similar]
        return {
            "exact": self.exact,
            "normalized": self.similar,
            "first": [{"place": place, "repeats": other} for place, other in pairs],
        }


def within(records: Hashes) -> Duplicates:
    """Find the records that repeat an earlier record of the same set."""
    exact, similar = _repeats(records.same_N), _repeats(records.similar_N)
    return _duplicates(records, records, exact, similar)


def between(records: Hashes, others: Hashes) -> Duplicates:
    """Find the records that repeat a record of another set."""
    exact = np.flatnonzero(np.isin(records.same_N, others.same_N))
    similar = np.flatnonzero(np.isin(records.similar_N, others.similar_N))
    return _duplicates(records, others, exact, similar)


def _repeats(hashes_N: np.ndarray) -> np.ndarray:
    """Return int64, ascending: indices of all equal hashes except the first.

    >>> _repeats(np.array([7, 8, 7, 7, 9], np.uint64)).tolist()
    [2, 3]
    """
    _, first = np.unique(hashes_N, return_index=True)
    repeated_N = np.ones(len(hashes_N), bool)
    repeated_N[first] = False
    return np.flatnonzero(repeated_N)


def _duplicates(
    records: Hashes, others: Hashes, exact: np.ndarray, similar: np.ndarray
) -> Duplicates:
    """Make `Duplicates` from two ascending lists of indices into `records`."""

    def pairs(indices: np.ndarray, mine_N: np.ndarray, theirs_N: np.ndarray) -> Pairs:
        return tuple(
            (records.places[index], others.places[int(np.argmax(theirs_N == mine_N[index]))])
            for index in indices[:ITEMS_PER_KIND].tolist()
        )

    nearly = np.setdiff1d(similar, exact)
    return Duplicates(
        exact=len(exact),
        similar=len(similar),
        first_exact=pairs(exact, records.same_N, others.same_N),
        first_similar=pairs(nearly, records.similar_N, others.similar_N),
    )
