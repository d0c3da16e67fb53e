"""Which tasks are kept back: never in the pre-training text, nor in the fine-tuning rows.

Of the list tasks, one structure in five is kept back in such a way that every *pair* of its parts
stays in training several times over: what is tested is putting known parts together anew. Of the
small tasks, whose slots take many values, one filling in five is kept back.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from qwen_local.embedded.make.list_tasks import GRIDS
from qwen_local.embedded.make.task import Structure

ONE_IN = 5


def digest(structure: Structure) -> int:
    """A number that looks random and is the same on every machine."""
    return int.from_bytes(hashlib.sha256("|".join(structure).encode()).digest()[:8], "big")


def pairs(structure: Structure) -> tuple[Structure, ...]:
    """Family and two of the three parts, in the three ways there are."""
    family, keep, change, gather = structure
    return (
        (family, keep, change, ""),
        (family, keep, "", gather),
        (family, "", change, gather),
    )


def reserve(structures: Sequence[Structure]) -> frozenset[Structure]:
    """One structure in five, in the order of the digest, leaving most of every pair behind.

    A structure is passed over if more than two fifths of those that share one of its pairs would
    then be kept back; so a pair that occurs once or twice is never kept back. Tasks that neither
    keep nor change (the largest number) have code of another shape and always stay in training.
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
    """Whether tasks of this structure are for the test only."""
    if structure[0] in GRIDS:
        return structure in RESERVED
    return digest(structure) % ONE_IN == 0
