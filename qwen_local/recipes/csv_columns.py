"""Checks that a table has the required columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qwen_local.datasets.faults import meant, quoted
from qwen_local.errors import Fault


def column_faults(where: str, columns: Sequence[str], required: Iterable[str]) -> list[Fault]:
    """Return a fault for each required column that is missing or repeated.

    Args:
        where: the table, or the place of its header.
        columns: column names of the table.
        required: required column names.

    >>> [fault] = column_faults("ratings.csv:1", ["userid", "rating"], ["userId", "rating"])
    >>> print(fault)
    ratings.csv:1: expected a column 'userId'; found 'userid', 'rating'
    <BLANKLINE>
    hint: did you mean "userid"?
    """
    seen = ", ".join(map(quoted, columns)) or "none"
    faults = []
    for name in required:
        if columns.count(name) > 1:
            problem = f"expected one column {quoted(name)}; found {seen}"
            faults.append(Fault(where, problem, "rename or remove all but one"))
        elif name not in columns:
            problem = f"expected a column {quoted(name)}; found {seen}"
            faults.append(Fault(where, problem, meant(name, columns)))
    return faults
