"""Text report of `data check`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from qwen_local.datasets.faults import quoted
from qwen_local.errors import Fault
from qwen_local.inspection.check import DataCheck, SetCheck, plural
from qwen_local.inspection.draw import Canvas, chart
from qwen_local.inspection.duplicates import Duplicates, Pairs

REASONS = {
    "overlong": "longer than {max_length:,} tokens",
    "empty_answer": "an answer is empty or whitespace",
    "nothing_trained": "no supervised token is left",
}
NOTES = {
    "roles_not_alternating": "user and assistant turns do not alternate",
    "ends_without_answer": "messages after the last answer are not supervised",
    "control_text": "text of a control token, encoded as plain text",
    "reasoning_left_out": "the chat template omits some of the reasoning",
    "several_rows": "several rows: the template writes earlier turns differently from the last",
}
SIMILAR = "except for case, whitespace and compatibility characters (NFKC, casefold)"
MIN_PAGE_WIDTH = 40
"""Minimum line width of the report in columns."""


def describe(check: DataCheck, canvas: Canvas) -> str:
    """Format the report; the last lines state whether training accepts the data."""
    return "\n".join(_Page(check, canvas).lines())


def dropped_reason(dropped: str, max_length: int) -> str:
    """Describe the reason why a row is dropped."""
    return REASONS.get(dropped, dropped).format(max_length=max_length)


class _Page:
    """Lines of the report, wrapped to the width of the canvas; places are never broken."""

    def __init__(self, check: DataCheck, canvas: Canvas) -> None:
        self._check = check
        self._canvas = canvas
        self._width = max(canvas.width, MIN_PAGE_WIDTH)
        folders = {str(Path(name).parent) for data_set in check.sets for name in data_set.names}
        # The headings show the full file names, so places omit a common folder.
        self._folder = f"{folders.pop()}/" if len(folders) == 1 else ""

    def lines(self) -> Iterator[str]:
        for data_set in self._check.sets:
            yield from self._set(data_set)
            yield ""
        if self._check.shared is not None:
            yield "in both sets"
            found = [*self._repeats(self._check.shared, "evaluation records that repeat one")]
            yield from found or ["  nothing"]
            yield ""
        yield from self._verdict()

    def _verdict(self) -> Iterator[str]:
        refused = [data_set for data_set in self._check.sets if data_set.refused]
        for data_set in refused:
            yield f"Training refuses {', '.join(data_set.names)}: {data_set.refused}."
        if not refused:
            yield "Training accepts the data unchanged."

    # --- one set ---

    def _set(self, data_set: SetCheck) -> Iterator[str]:
        found = data_set.found
        counts = f"{plural(found.records, 'record')}, {found.usable:,} usable"
        yield f"{', '.join(data_set.names)}: {counts}"
        for dropped, count, first in found.dropped.by_count():
            words = dropped_reason(dropped, found.max_length)
            yield from self._counted(count, f"dropped: {words}", first)
        if found.cut:
            yield from self._counted(found.cut, f"cut to {found.max_length:,} tokens")
        if found.rows:
            share = f"{found.supervised / found.tokens:.1%}"
            ended = f"{found.ended / found.rows:.1%}"
            yield f"  rows        {found.rows:,} usable"
            yield f"  tokens      {found.tokens:,}, counted by {self._check.model}"
            yield f"  supervised  {found.supervised:,} tokens, {share}"
            yield f"  ends        {ended} of the rows end with a supervised end token"
        if found.lengths:
            yield from ["", *self._lengths(data_set)]
        if data_set.labels is not None:
            yield from [
                "",
                "answers",
                *self._chart(map(quoted, data_set.labels), data_set.labels.values()),
            ]
        if warnings := [*self._warnings(data_set)]:
            yield from ["", "warnings", *warnings]
        if found.faults.total:
            yield from ["", "faults", *self._faults(data_set)]

    def _lengths(self, data_set: SetCheck) -> Iterator[str]:
        edges = data_set.lengths.edges
        yield f"tokens per row (median {data_set.median_length:,})"
        names = (f"{low + 1:,}-{high:,}" for low, high in pairwise(edges))
        yield from self._chart(names, data_set.lengths.counts)
        longest = [f"{self._short(place)} ({tokens:,})" for tokens, place in data_set.found.longest]
        yield from self._wrapped(f"longest: {', '.join(longest)}", "  ")

    def _warnings(self, data_set: SetCheck) -> Iterator[str]:
        found = data_set.found
        yield from self._repeats(data_set.duplicates, "records that repeat another")
        for kind, count, secrets in found.secrets.by_count():
            places = [f"{secret.place} ({secret.prefix}...)" for secret in secrets]
            yield from self._counted(count, f"looks like a secret, {kind}", places)
        for kind, count, first in found.controls.by_count():
            yield from self._counted(count, f"control character {kind}", first)
        for note, count, first in found.notes.by_count():
            yield from self._counted(count, NOTES.get(note, note.replace("_", " ")), first)
        for key, count, first in found.ignored.by_count():
            yield from self._counted(count, f"key ignored, {quoted(key)}", first)

    def _repeats(self, found: Duplicates, what: str) -> Iterator[str]:
        def pairs(first: Pairs) -> list[str]:
            return [f"{place} = {self._short(other)}" for place, other in first]

        if found.exact:
            words = f"{what} exactly"
            yield from self._counted(found.exact, words, pairs(found.first_exact))
        if nearly := found.similar - found.exact:
            yield from self._counted(nearly, f"{what} {SIMILAR}", pairs(found.first_similar))

    def _faults(self, data_set: SetCheck) -> Iterator[str]:
        tally = data_set.found.faults
        for kind, count, faults in tally.by_count():
            yield from self._wrapped(kind, f"{count:>7,}  ")
            hints = {fault.hint for fault in faults}
            for fault in faults:
                yield from self._wrapped(self._fault(fault, kind, hint=len(hints) > 1), " " * 11)
            if count > len(faults):
                yield f"{'':11}... and {count - len(faults):,} more"
            if len(hints) == 1 and (hint := hints.pop()) is not None:
                yield from self._wrapped(f"hint: {hint}", " " * 9)
        if rest := tally.total - sum(tally.counts.values()):
            yield f"{rest:>7,}  of other kinds"

    def _fault(self, fault: Fault, kind: str, *, hint: bool) -> str:
        """Return the place and the details in which a fault differs from its kind."""
        _, found, value = fault.problem.partition("; found ")
        line = self._short(fault.where)
        if found:
            line += f": found {value}"
        elif fault.problem != kind:
            line += f": {fault.problem}"
        return f"{line}; hint: {fault.hint}" if hint and fault.hint else line

    # --- lines ---

    def _short(self, place: str) -> str:
        return place.removeprefix(self._folder)

    def _counted(self, count: int, words: str, places: Sequence[str] = ()) -> Iterator[str]:
        """Yield lines with a count, a description and the first places."""
        shown = ", ".join(map(self._short, places))
        more = f", ... ({count - len(places):,} more)" if 0 < len(places) < count else ""
        text = f"{words}: {shown}{more}" if places else words
        yield from self._wrapped(text, f"{count:>7,}  ")

    def _wrapped(self, text: str, head: str) -> list[str]:
        """Wrap text behind `head` with a hanging indent; places are never broken."""
        return textwrap.wrap(
            text,
            self._width,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        )

    def _chart(self, names: Iterable[str], counts: Iterable[int]) -> Iterator[str]:
        inner = replace(self._canvas, width=self._width - 2)
        return (f"  {line}" for line in chart([*names], [*counts], inner))
