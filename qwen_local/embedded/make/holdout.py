"""The held-out tasks, which occur neither in the pre-training text nor in the fine-tuning rows.

One in five structures of the list tasks is held out, such that every *pair* of its parts still
occurs several times in training: the test is to combine known parts in new ways. Of the small
tasks, whose slots take many values, one in five combinations of values is held out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from qwen_local.embedded.make.list_tasks import GRIDS
from qwen_local.embedded.make.task import Structure

ONE_IN = 5


def digest(structure: Structure) -> int:
    """Hash a structure to a number that is the same on every machine."""
    return int.from_bytes(hashlib.sha256("|".join(structure).encode()).digest()[:8], "big")


def pairs(structure: Structure) -> tuple[Structure, ...]:
    """Return the three pairs of parts of a structure, each with the family."""
    family, keep, change, gather = structure
    return (
        (family, keep, change, ""),
        (family, keep, "", gather),
        (family, "", change, gather),
    )


def reserve(structures: Sequence[Structure]) -> frozenset[Structure]:
    """Select one in five structures, in digest order, so that most of every pair stays.

    A structure is skipped if more than two fifths of the structures with one of its pairs would
    then be held out; so a pair that occurs once or twice is never held out. Tasks that neither
    filter nor change items (the largest number) have code of another form and stay in training.
    """
    total = Counter(pair for structure in structures for pair in pairs(structure))
    taken: Counter[Structure] = Counter()
    chosen: list[Structure] = []
    for structure in sorted(structures, key=digest):
        composed = structure[1:3] != ("all", "same")
        if composed and all(taken[pair] + 1 <= total[pair] * 0.4 for pair in pairs(structure)):
            chosen.append(structure)
            taken.update(pairs(structure))
        if len(chosen) * ONE_IN >= len(structures):
            break
    return frozenset(chosen)


RESERVED = frozenset[Structure]().union(
    *(reserve(grid.structures(family)) for family, grid in GRIDS.items())
)


def held_out(structure: Structure) -> bool:
    """Return True if tasks with this structure are only for the test."""
    if structure[0] in GRIDS:
        return structure in RESERVED
    return digest(structure) % ONE_IN == 0
