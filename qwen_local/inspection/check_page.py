"""The report of `data check` as a person reads it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from qwen_local.datasets.faults import quoted
from qwen_local.errors import Fault
from qwen_local.inspection.check import Check, SetCheck, many
from qwen_local.inspection.draw import Canvas, chart
from qwen_local.inspection.duplicates import Duplicates, Pairs

REASONS = {
    "overlong": "longer than {max_length:,} tokens",
    "empty_answer": "an answer is empty or white space",
    "nothing_trained": "no trained token is left",
}
NOTES = {
    "roles_not_alternating": "user and assistant do not take turns",
    "ends_without_answer": "what follows the last answer teaches nothing",
    "control_text": "the text of a control token, encoded as the plain text that it is",
    "reasoning_left_out": "the chat template does not write all of the reasoning",
    "several_rows": "several rows: the template writes earlier turns otherwise than the last",
}
SIMILAR = "but for case, white space and compatible characters (NFKC, case folded)"
NARROWEST = 40
"""Columns; a page is never set narrower."""


def describe(check: Check, canvas: Canvas) -> str:
    """All that was found, and whether training takes the data."""
    return "\n".join(_Page(check, canvas).lines())


def reason(dropped: str, max_length: int) -> str:
    """Why a row is dropped, in words."""
    return REASONS.get(dropped, dropped).format(max_length=max_length)


class _Page:
    """Lines about a check, none longer than the canvas is wide unless a place is."""

    def __init__(self, check: Check, canvas: Canvas) -> None:
        self._check = check
        self._canvas = canvas
        self._width = max(canvas.width, NARROWEST)
        folders = {str(Path(name).parent) for side in check.sides for name in side.names}
        # The headings name the files in full; a place of theirs need not repeat the folder.
        self._folder = f"{folders.pop()}/" if len(folders) == 1 else ""

    def lines(self) -> Iterator[str]:
        for side in self._check.sides:
            yield from self._side(side)
            yield ""
        if self._check.shared is not None:
            yield "in both sets"
            found = [*self._repeats(self._check.shared, "records to evaluate on that repeat one")]
            yield from found or ["  nothing"]
            yield ""
        yield from self._verdict()

    def _verdict(self) -> Iterator[str]:
        refused = [side for side in self._check.sides if side.refused]
        for side in refused:
            yield f"Training refuses {', '.join(side.names)}: {side.refused}."
        if not refused:
            yield "Training takes these data as they are."

    # --- one set ---

    def _side(self, side: SetCheck) -> Iterator[str]:
        found = side.found
        counts = f"{many(found.records, 'record')}, {found.usable:,} usable"
        yield f"{', '.join(side.names)}: {counts}"
        for dropped, count, first in found.dropped.by_count():
            words = reason(dropped, found.max_length)
            yield from self._counted(count, f"dropped: {words}", first)
        if found.cut:
            yield from self._counted(found.cut, f"cut to {found.max_length:,} tokens")
        if found.rows:
            share = f"{found.supervised / found.tokens:.1%}"
            yield f"  rows     {found.rows:,} to learn from"
            yield f"  tokens   {found.tokens:,}, counted by {self._check.model}"
            yield f"  learned  {found.supervised:,} tokens, {share}"
            yield f"  ends     {found.ended / found.rows:.1%} of the rows end with a learned end"
        if found.lengths:
            yield from ["", *self._lengths(side)]
        if side.labels is not None:
            yield from ["", "answers", *self._chart(map(quoted, side.labels), side.labels.values())]
        if worth := [*self._worth_a_look(side)]:
            yield from ["", "worth a look", *worth]
        if found.faults.total:
            yield from ["", "faults", *self._faults(side)]

    def _lengths(self, side: SetCheck) -> Iterator[str]:
        edges = side.lengths.edges
        yield f"tokens of a row (half of the rows have {side.middle:,} or less)"
        names = (f"{low + 1:,}-{high:,}" for low, high in pairwise(edges))
        yield from self._chart(names, side.lengths.counts)
        longest = [f"{self._short(place)} ({tokens:,})" for tokens, place in side.found.longest]
        yield from self._wrapped(f"longest: {', '.join(longest)}", "  ")

    def _worth_a_look(self, side: SetCheck) -> Iterator[str]:
        found = side.found
        yield from self._repeats(side.duplicates, "records that repeat another")
        for kind, count, secrets in found.secrets.by_count():
            places = [f"{secret.place} ({secret.begins}...)" for secret in secrets]
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
            words = f"{what} word for word"
            yield from self._counted(found.exact, words, pairs(found.first_exact))
        if nearly := found.similar - found.exact:
            yield from self._counted(nearly, f"{what} {SIMILAR}", pairs(found.first_similar))

    def _faults(self, side: SetCheck) -> Iterator[str]:
        tally = side.found.faults
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
        """What one fault says beyond its kind."""
        _, found, seen = fault.problem.partition("; found ")
        said = self._short(fault.where)
        if found:
            said += f": found {seen}"
        elif fault.problem != kind:
            said += f": {fault.problem}"
        return f"{said}; hint: {fault.hint}" if hint and fault.hint else said

    # --- lines ---

    def _short(self, place: str) -> str:
        return place.removeprefix(self._folder)

    def _counted(self, count: int, words: str, places: Sequence[str] = ()) -> Iterator[str]:
        """A count, what was counted, and the first places."""
        shown = ", ".join(map(self._short, places))
        more = f", ... ({count - len(places):,} more)" if 0 < len(places) < count else ""
        text = f"{words}: {shown}{more}" if places else words
        yield from self._wrapped(text, f"{count:>7,}  ")

    def _wrapped(self, text: str, head: str) -> list[str]:
        """Lines of text behind `head`; a place is never broken."""
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
