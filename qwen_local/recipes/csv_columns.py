"""The columns that a table must have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qwen_local.datasets.faults import meant, quoted
from qwen_local.errors import Fault


def column_faults(where: str, columns: Sequence[str], wanted: Iterable[str]) -> list[Fault]:
    """A fault for each column that is not there once, with the nearest name that is.

    Args:
        where: the table, or the place of its header.
        columns: those that are there.
        wanted: those that are needed.

    >>> [fault] = column_faults("ratings.csv:1", ["userid", "rating"], ["userId", "rating"])
    >>> print(fault)
    ratings.csv:1: expected a column 'userId'; found 'userid', 'rating'
    <BLANKLINE>
    hint: did you mean "userid"?
    """
    seen = ", ".join(map(quoted, columns)) or "none"
    faults = []
    for name in wanted:
        if columns.count(name) > 1:
            problem = f"expected one column {quoted(name)}; found {seen}"
            faults.append(Fault(where, problem, "rename or remove all but one"))
        elif name not in columns:
            problem = f"expected a column {quoted(name)}; found {seen}"
            faults.append(Fault(where, problem, meant(name, columns)))
    return faults
