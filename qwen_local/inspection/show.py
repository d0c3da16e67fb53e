"""One record as it is learned: what is context, what is trained, what is cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from qwen_local.console.visible import visible
from qwen_local.datasets.formats import Example
from qwen_local.datasets.record_files import Faults
from qwen_local.datasets.tokenizer import Tokenized
from qwen_local.datasets.trim import Overlong, trim
from qwen_local.errors import DatasetError
from qwen_local.inspection.check_page import reason
from qwen_local.inspection.draw import Canvas, Part, marked

Decode = Callable[[Sequence[int]], str]
"""The text of tokens, that of control tokens included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownRow:
    """One row of the record. T = its tokens, N = its stretches."""

    ids_T: tuple[int, ...]
    parts_T: tuple[Part, ...]
    texts_T: tuple[str, ...]
    """Of each token by itself: half a character is shown as U+FFFD."""
    text_N: tuple[tuple[Part, str], ...]
    """The row's text, in stretches of one part each."""
    dropped: str | None
    """Why there is no such row in training, or None."""
    literals: int
    """How often the data hold the text of a control token."""

    def to_json(self, *, ids: bool) -> dict[str, Any]:
        """The row in JSON's types; with `ids`, token by token as well."""
        said: dict[str, Any] = {
            "tokens": len(self.ids_T),
            "trained": self.parts_T.count("trained"),
            "cut": self.parts_T.count("cut"),
            "dropped": self.dropped,
            "control_text": self.literals,
            "text": [{"part": part, "text": text} for part, text in self.text_N],
        }
        if ids:
            said["ids"] = list(self.ids_T)
            said["parts"] = list(self.parts_T)
        return said


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A record and the rows that it becomes."""

    place: str
    format: str
    rows: tuple[ShownRow, ...]
    max_length: int

    def to_json(self, *, ids: bool) -> dict[str, Any]:
        """The record in JSON's types."""
        rows = [row.to_json(ids=ids) for row in self.rows]
        return {"place": self.place, "format": self.format, "rows": rows}

    def describe(self, canvas: Canvas, *, ids: bool) -> str:
        """The record for a person, safe for a terminal.

        Args:
            canvas: where it is shown.
            ids: each token on a line of its own, instead of the text.
        """
        if not self.rows:
            said = "nothing of it is learned (every answer has weight 0)"
            return visible(f"{self.place} ({self.format}): {said}")
        return "\n\n".join("\n".join(self._row(number, canvas, ids)) for number in self._numbers)

    @property
    def _numbers(self) -> range:
        return range(len(self.rows))

    def _row(self, number: int, canvas: Canvas, ids: bool) -> Iterator[str]:
        row = self.rows[number]
        which = f", row {number + 1} of {len(self.rows)}" if len(self.rows) > 1 else ""
        counts = [f"{len(row.ids_T):,} tokens", f"{row.parts_T.count('trained'):,} trained"]
        if cut := row.parts_T.count("cut"):
            counts.append(f"{cut:,} cut off")
        yield visible(f"{self.place} ({self.format}{which}): {', '.join(counts)}")
        if row.dropped is not None:
            yield f"dropped: {reason(row.dropped, self.max_length)}"
        if row.literals:
            yield f"control tokens that are plain text of the data: {row.literals:,} (see --ids)"
        if ids:
            yield from _listed(row, canvas)
        else:
            yield "".join(marked(part, visible(text), canvas) for part, text in row.text_N)


def show(
    example: Example,
    rows: Iterable[Tokenized],
    decode: Decode,
    *,
    max_length: int,
    overlong: Overlong,
) -> Shown:
    """A record as training takes it.

    Args:
        example: the record.
        rows: what it becomes.
        decode: gives text back.
        max_length: tokens of the longest row allowed.
        overlong: what becomes of longer ones.
    """
    shown = tuple(
        _show_row(row, decode, max_length, overlong, empty=example.says_nothing) for row in rows
    )
    return Shown(place=example.where, format=example.format, rows=shown, max_length=max_length)


def pick(
    examples: Iterable[Example | Faults], *, row: int | None = None, line: int | None = None
) -> Example:
    """One record: by its number, by its line, or the first.

    Args:
        examples: of one source.
        row: counted from 1, records with faults among them.
        line: the number behind the colon of its place; it wins.

    Raises:
        DatasetError: the record has faults, or none is there.
    """
    number, at = 0, None
    for number, item in enumerate(examples, 1):
        at = _number(item[0].where if isinstance(item, tuple) else item.where)
        if at == line if line is not None else number == (row or 1):
            if isinstance(item, tuple):
                raise DatasetError(item)
            return item
        if line is not None and at is not None and at > line:
            break
    if number == 0:
        raise DatasetError.at("--row", "expected at least one record; found none")
    if line is not None:
        problem = f"expected the line of a record; found {line}"
        raise DatasetError.at("--line", problem, f"the nearest one looked at is at {at}")
    raise DatasetError.at("--row", f"expected at most {number}, the last record; found {row}")


def _number(where: str) -> int | None:
    """The line in a place.

    >>> _number("a.jsonl:17"), _number("a.jsonl:17: messages[0].role"), _number("a.jsonl")
    (17, 17, None)
    """
    numbers = [part for part in where.split(": ", 1)[0].rpartition(":")[2:] if part.isdigit()]
    return int(numbers[0]) if numbers else None


def _show_row(
    row: Tokenized, decode: Decode, max_length: int, overlong: Overlong, *, empty: bool
) -> ShownRow:
    kept = trim(row.trained, max_length=max_length, overlong=overlong)
    dropped = "empty_answer" if empty else kept.dropped
    # A row that is dropped as a whole is shown as what it would have been. What stands behind the
    # last trained token is no loss, either: it is context that teaches nothing.
    limit = len(row.ids)
    if kept.cut:
        limit = kept.kept
    elif kept.dropped == "nothing_trained":
        limit = max_length
    parts = [_part(at, trained, limit) for at, trained in enumerate(row.trained)]
    stretches = [
        (part, [id for _, id in group])
        for part, group in groupby(zip(parts, row.ids, strict=True), key=lambda pair: pair[0])
    ]
    return ShownRow(
        ids_T=tuple(row.ids),
        parts_T=tuple(parts),
        texts_T=tuple(decode([id]) for id in row.ids),
        text_N=tuple((part, decode(ids)) for part, ids in stretches),
        dropped=dropped,
        literals=row.literals,
    )


def _part(at: int, trained: bool, limit: int) -> Part:
    if at >= limit:
        return "cut"
    return "trained" if trained else "context"


def _listed(row: ShownRow, canvas: Canvas) -> Iterator[str]:
    """A line for each token: its id, what becomes of it, its text in quotes."""
    for id, part, text in zip(row.ids_T, row.parts_T, row.texts_T, strict=True):
        line = f"{id:>7}  {part:<7}  {text!r}"
        yield marked(part, line, canvas) if canvas.color else line
