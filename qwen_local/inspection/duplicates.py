"""Records that say the same, within a set and between two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_local.inspection.tally import FIRST, Places


@dataclass(frozen=True, kw_only=True, slots=True)
class Hashes:
    """What is compared of a set of records: see `Findings`. N = records."""

    same_N: np.ndarray
    """uint64 [N]."""
    similar_N: np.ndarray
    """uint64 [N]."""
    places: Places


Pairs = tuple[tuple[str, str], ...]
"""(place of a record, place of the one that it repeats)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """How many records say what another one says."""

    exact: int
    """Word for word."""
    similar: int
    """Apart from case, white space and compatible characters; the exact ones included."""
    first_exact: Pairs
    first_similar: Pairs
    """The first that are similar and not exact."""

    def to_json(self) -> dict[str, Any]:
        """In JSON's types."""
        pairs = [*self.first_exact, *self.first_similar]
        return {
            "exact": self.exact,
            "normalized": self.similar,
            "first": [{"place": place, "repeats": other} for place, other in pairs],
        }


def within(records: Hashes) -> Duplicates:
    """The records that repeat an earlier one of the same set."""
    exact, similar = _repeats(records.same_N), _repeats(records.similar_N)
    return _duplicates(records, records, exact, similar)


def between(records: Hashes, others: Hashes) -> Duplicates:
    """The records that repeat one of another set."""
    exact = np.flatnonzero(np.isin(records.same_N, others.same_N))
    similar = np.flatnonzero(np.isin(records.similar_N, others.similar_N))
    return _duplicates(records, others, exact, similar)


def _repeats(hashes_N: np.ndarray) -> np.ndarray:
    """int64, ascending: the indices of all but the first of equal hashes.

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
    """Both given by ascending indices into `records`."""

    def pairs(indices: np.ndarray, mine_N: np.ndarray, theirs_N: np.ndarray) -> Pairs:
        return tuple(
            (records.places[index], others.places[int(np.argmax(theirs_N == mine_N[index]))])
            for index in indices[:FIRST].tolist()
        )

    nearly = np.setdiff1d(similar, exact)
    return Duplicates(
        exact=len(exact),
        similar=len(similar),
        first_exact=pairs(exact, records.same_N, others.same_N),
        first_similar=pairs(nearly, records.similar_N, others.similar_N),
    )
