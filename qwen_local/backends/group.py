"""The ranks that train one adapter together.

Each rank is a process with its own copy of the frozen model and its own rows of a step. What ranks
exchange goes through a `Group`: gradients and losses are summed, decisions are made by all, the
first rank alone writes. Every rank calls the same methods in the same order, or all of them hang.
"""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


class Group:
    """A group of one: this process alone. Its methods return what they are given, uncopied."""

    rank = 0
    """Number of this process, from 0."""
    size = 1
    """Number of processes (world size)."""

    @property
    def first(self) -> bool:
        """True on the one rank that writes files and prints."""
        return self.rank == 0

    def sum(self, arrays: T) -> T:
        """Sum arrays over all ranks.

        Args:
            arrays: an engine's arrays in a list, tuple or dictionary; the same structure, shapes
                and dtypes on every rank.

        Returns:
            The same structure; equal bits on every rank. Arrays that can be written to are summed
            in place.
        """
        return arrays

    def broadcast(self, value: T) -> T:
        """Return the value of the first rank."""
        return value

    def any_rank(self, flag: bool) -> bool:
        """Return True, on every rank, if the flag is True on at least one."""
        return flag


ALONE = Group()
"""The group of a run in one process."""
