"""`data show`: one record with its context, supervised and cut tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from qwen_local.console.visible import visible
from qwen_local.datasets.formats import Example, Meta
from qwen_local.datasets.record_files import Faults
from qwen_local.datasets.tokenizer import Tokenized
from qwen_local.datasets.trim import Overlong, trim
from qwen_local.errors import DatasetError
from qwen_local.inspection.check_page import dropped_reason
from qwen_local.inspection.draw import Canvas, Part, marked

Decode = Callable[[Sequence[int]], str]
"""Decodes token ids to text, including control tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownRow:
    """One row of a record. T = tokens, N = segments."""

    ids_T: tuple[int, ...]
    """Token ids."""
    parts_T: tuple[Part, ...]
    """Part of each token."""
    texts_T: tuple[str, ...]
    """Text of each single token; incomplete characters are U+FFFD."""
    text_N: tuple[tuple[Part, str], ...]
    """Text of the row, in segments of one part each."""
    dropped: str | None
    """Reason why training drops the row, or None."""
    literals: int
    """Number of times the data contain the text of a control token."""

    def to_json(self, *, ids: bool) -> dict[str, Any]:
        """Return the row as a JSON object; with `ids`, also every token."""
        row: dict[str, Any] = {
            "tokens": len(self.ids_T),
            "trained": self.parts_T.count("trained"),
            "cut": self.parts_T.count("cut"),
            "dropped": self.dropped,
            "control_text": self.literals,
            "text": [{"part": part, "text": text} for part, text in self.text_N],
        }
        if ids:
            row["ids"] = list(self.ids_T)
            row["parts"] = list(self.parts_T)
        return row


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownRecord:
    """A record and its rows."""

    place: str
    format: str
    meta: Meta
    rows: tuple[ShownRow, ...]
    max_length: int

    def to_json(self, *, ids: bool) -> dict[str, Any]:
        """Return the record as a JSON object."""
        rows = [row.to_json(ids=ids) for row in self.rows]
        return {
            "place": self.place,
            "format": self.format,
            "id": self.meta.id,
            "category": self.meta.category,
            "rows": rows,
        }

    def describe(self, canvas: Canvas, *, ids: bool) -> str:
        """Describe the record as text that is safe to print on a terminal.

        Args:
            canvas: capabilities of the terminal.
            ids: True to list one token per line instead of the text.
        """
        if not self.rows:
            reason = "no supervised tokens (every answer has weight 0)"
            return visible(f"{self.place} ({self._about}): {reason}")
        return "\n\n".join("\n".join(self._row(number, canvas, ids)) for number in self._numbers)

    @property
    def _about(self) -> str:
        """Format, id and category."""
        labels = (("id", self.meta.id), ("category", self.meta.category))
        return ", ".join([self.format, *(f"{n} {v}" for n, v in labels if v is not None)])

    @property
    def _numbers(self) -> range:
        return range(len(self.rows))

    def _row(self, number: int, canvas: Canvas, ids: bool) -> Iterator[str]:
        row = self.rows[number]
        which = f", row {number + 1} of {len(self.rows)}" if len(self.rows) > 1 else ""
        counts = [f"{len(row.ids_T):,} tokens", f"{row.parts_T.count('trained'):,} supervised"]
        if cut := row.parts_T.count("cut"):
            counts.append(f"{cut:,} cut off")
        yield visible(f"{self.place} ({self._about}{which}): {', '.join(counts)}")
        if row.dropped is not None:
            yield f"dropped: {dropped_reason(row.dropped, self.max_length)}"
        if row.literals:
            yield (
                f"control tokens written as plain text in the data: {row.literals:,} "
                "(see `qwen-local data show --ids`)"
            )
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
) -> ShownRecord:
    """Mark up a record as training uses it.

    Args:
        example: the record.
        rows: rows of the record.
        decode: decodes token ids.
        max_length: maximum row length in tokens.
        overlong: action for longer rows.
    """
    shown = tuple(_show_row(row, decode, max_length, overlong, empty=example.empty) for row in rows)
    return ShownRecord(
        place=example.where,
        format=example.format,
        meta=example.meta,
        rows=shown,
        max_length=max_length,
    )


def pick(
    examples: Iterable[Example | Faults], *, row: int | None = None, line: int | None = None
) -> Example:
    """Return one record: by number, by line, or the first.

    Args:
        examples: examples of one source.
        row: number of the record, from 1, counting faulty records.
        line: line number of the record; takes precedence over `row`.

    Raises:
        DatasetError: the record does not exist or has faults.
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
        raise DatasetError.at("row", "the source has no records")
    if line is not None:
        problem = f"no record starts at line {line}"
        raise DatasetError.at("line", problem, f"try `line={at}`")
    raise DatasetError.at("row", f"expected at most {number}, the last record; found {row}")


def _number(where: str) -> int | None:
    """Return the line number of a place, or None.

    >>> _number("a.jsonl:17"), _number("a.jsonl:17: messages[0].role"), _number("a.jsonl")
    (17, 17, None)
    """
    numbers = [part for part in where.split(": ", 1)[0].rpartition(":")[2:] if part.isdigit()]
    return int(numbers[0]) if numbers else None


def _show_row(
    row: Tokenized, decode: Decode, max_length: int, overlong: Overlong, *, empty: bool
) -> ShownRow:
    kept = trim(row.supervised, max_length=max_length, overlong=overlong)
    dropped = "empty_answer" if empty else kept.dropped
    # A dropped row is shown as if it were kept. Tokens after the last supervised one are shown as
    # context, because cutting them changes no loss.
    limit = len(row.ids)
    if kept.cut:
        limit = kept.kept
    elif kept.dropped == "nothing_trained":
        limit = max_length
    parts = [_part(at, trained, limit) for at, trained in enumerate(row.supervised)]
    segments = [
        (part, [id for _, id in group])
        for part, group in groupby(zip(parts, row.ids, strict=True), key=lambda pair: pair[0])
    ]
    return ShownRow(
        ids_T=tuple(row.ids),
        parts_T=tuple(parts),
        texts_T=tuple(decode([id]) for id in row.ids),
        text_N=tuple((part, decode(ids)) for part, ids in segments),
        dropped=dropped,
        literals=row.literals,
    )


def _part(at: int, trained: bool, limit: int) -> Part:
    if at >= limit:
        return "cut"
    return "trained" if trained else "context"


def _listed(row: ShownRow, canvas: Canvas) -> Iterator[str]:
    """Yield a line per token: id, part, quoted text."""
    for id, part, text in zip(row.ids_T, row.parts_T, row.texts_T, strict=True):
        shown = "supervised" if part == "trained" else part
        line = f"{id:>7}  {shown:<10}  {text!r}"
        yield marked(part, line, canvas) if canvas.color else line
