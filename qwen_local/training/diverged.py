"""The error of a run whose numbers are no longer finite."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_local.errors import QwenLocalError

HINT = "start a new run with a lower train.learning_rate, or in float32 (model.dtype)"
ROWS_NAMED = 8
"""Rows named in one message."""


class DivergedError(QwenLocalError):
    """Loss or gradient stopped being finite; the adapter was not updated with it or saved."""

    exit_code = 4

    def __init__(self, problem: str, rows: str | None = None) -> None:
        """Make the message.

        Args:
            problem: what is not finite, and at which step.
            rows: names the rows that may have caused it.
        """
        super().__init__(*filter(None, (problem, rows)))

    def __str__(self) -> str:
        return "\n\n".join((*self.args, f"hint: {HINT}"))


def shortened(places: Sequence[str]) -> str:
    """The first few of these places, and the number of others.

    >>> shortened([f"a.jsonl:{line}" for line in range(1, 11)])[-31:]
    'a.jsonl:7, a.jsonl:8 and 2 more'
    """
    more = f" and {len(places) - ROWS_NAMED:,} more" if len(places) > ROWS_NAMED else ""
    return f"{', '.join(places[:ROWS_NAMED])}{more}"
