"""Counts and places of many rows in little memory, independent of how the rows are divided."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

MAX_KINDS = 100
"""Maximum number of kinds in a tally."""
ITEMS_PER_KIND = 5
"""Number of items that a tally keeps per kind."""


class Tally(Generic[T]):
    """Number of items of each kind, and the first items of each kind.

    The data can produce any number of kinds; a tally keeps the first `MAX_KINDS` by name. A kind
    that is kept overall is also kept in every block of the data, so its count is exact, and the
    division into blocks does not change which kinds are kept.
    """

    __slots__ = ("counts", "first", "total")

    def __init__(self) -> None:
        self.total = 0
        """Number of items of all kinds, including kinds that are not kept."""
        self.counts: dict[str, int] = {}
        self.first: dict[str, list[T]] = {}

    def add(self, kind: str, item: T) -> None:
        """Count one item."""
        self._add(kind, 1, (item,))

    def merge(self, other: Self) -> None:
        """Add the tally of the items that follow."""
        rest = other.total - sum(other.counts.values())
        for kind, count in other.counts.items():
            self._add(kind, count, other.first[kind])
        self.total += rest

    def _add(self, kind: str, count: int, items: Iterable[T]) -> None:
        self.total += count
        if kind not in self.counts:
            if len(self.counts) == MAX_KINDS:
                last = max(self.counts)
                if kind > last:
                    return
                del self.counts[last], self.first[last]
            self.counts[kind], self.first[kind] = 0, []
        self.counts[kind] += count
        first = self.first[kind]
        first += list(items)[: ITEMS_PER_KIND - len(first)]

    def by_count(self) -> list[tuple[str, int, list[T]]]:
        """Return (kind, count, first items), the most frequent first."""
        ordered = sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return [(kind, count, self.first[kind]) for kind, count in ordered]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tally):
            return NotImplemented
        mine = (self.total, self.counts, self.first)
        return mine == (other.total, other.counts, other.first)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __getstate__(self) -> tuple[Any, ...]:
        return (self.total, self.counts, self.first)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.total, self.counts, self.first = state


class Places:
    """Places such as `train.jsonl:17`, stored in eight bytes each instead of a string."""

    __slots__ = ("_names", "_numbers", "_starts")

    def __init__(self, places: Iterable[str] = ()) -> None:
        """Store these places.

        >>> places = Places(["a.jsonl:1", "a.jsonl:3", "b.csv:2"])
        >>> places[1], places[2], len(places)
        ('a.jsonl:3', 'b.csv:2', 3)
        """
        self._numbers = array("q")
        self._starts: list[int] = []
        self._names: list[str] = []
        for place in places:
            self.append(place)

    def append(self, place: str) -> None:
        """Add a place at the end."""
        name, _, number = place.rpartition(":")
        if not self._names or self._names[-1] != name:
            self._starts.append(len(self._numbers))
            self._names.append(name)
        self._numbers.append(int(number))

    def extend(self, other: Self) -> None:
        """Add places at the end."""
        for start, name in zip(other._starts, other._names, strict=True):
            if not self._names or self._names[-1] != name:
                self._starts.append(len(self._numbers) + start)
                self._names.append(name)
        self._numbers.extend(other._numbers)

    def __getitem__(self, index: int) -> str:
        run = bisect_right(self._starts, index) - 1
        return f"{self._names[run]}:{self._numbers[index]}"

    def __len__(self) -> int:
        return len(self._numbers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Places):
            return NotImplemented
        mine = (self._numbers, self._starts, self._names)
        return mine == (other._numbers, other._starts, other._names)

    __hash__ = None  # type: ignore[assignment]  # mutable
