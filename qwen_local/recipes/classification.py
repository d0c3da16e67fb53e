"""A table of texts and their labels as rows that ask for the label.

The source is read twice. The first pass notes a hash of each text, 12 bytes a row, and so finds
texts that repeat and texts that stand with two labels; the second takes up the rows that were
drawn. Memory holds the hashes and the drawn rows, never the source.

Shapes: N = rows with text and label.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_local.datasets.faults import FAULTS_KEPT, found, quoted
from qwen_local.datasets.record_files import Record
from qwen_local.datasets.sources import Source, Wanted, locate
from qwen_local.errors import DatasetError, Fault
from qwen_local.recipes.csv_columns import column_faults
from qwen_local.recipes.output import TRAIN, VALID, Row, Summary, balance, check_output, write_rows
from qwen_local.recipes.subset import draw

INSTRUCTION = "Which category does this text belong to? Answer with the category alone."
CATEGORIES = "{categories}"
"""What an instruction may hold in the place of the labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the rows are to be like."""

    text_column: str = "text"
    label_column: str = "label"
    per_category: int = 150
    """Most rows of a label, of both files together."""
    instruction: str = INSTRUCTION
    eval_fraction: float = 0.1
    """Of each label's rows."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The rows to be taken up."""

    side: Mapping[int, str]
    """By the draw of its text, the file that a row goes to."""
    left_out: Mapping[str, int]
    short: Mapping[str, int]
    """Different texts of the labels that have fewer than were wished for."""


def build(source: str, output: Path, *, overwrite: bool, wishes: Wishes) -> Summary:
    """The folder of rows from a table.

    Raises:
        DatasetError: the source cannot be used; every fault of it is named.
        JobError: the output cannot be written.
    """
    [table], _ = locate([Wanted(name=source)])
    check_output(output, overwrite=overwrite, sources=[Path(table.name)])
    notes = _Notes(table, wishes)
    labels = sorted(notes.numbers)
    if len(labels) < 2:
        seen = ", ".join(map(quoted, labels)) or "none"
        problem = f"expected at least two different labels; found {seen}"
        raise DatasetError.at(f"{table.name}: {wishes.label_column}", problem)
    choice = notes.choose()
    asked = wishes.instruction.replace(CATEGORIES, ", ".join(labels))
    rows: dict[str, dict[int, Row]] = {TRAIN: {}, VALID: {}}
    for text, label in _pairs(table, wishes, []):
        drawn = draw(wishes.seed, text)
        if label and drawn in choice.side:
            asks = {"prompt": f"{asked}\n\n{text}", "completion": label}
            rows[choice.side[drawn]][drawn] = asks
    sides = {name: [side[drawn] for drawn in sorted(side)] for name, side in rows.items()}
    write_rows(output, sides[TRAIN], sides[VALID])
    return Summary(
        output=output,
        rows={name: len(side) for name, side in sides.items()},
        labels={name: balance(row["completion"] for row in side) for name, side in sides.items()},
        left_out=choice.left_out,
        notes=_shortfalls(choice.short, len(labels), wishes),
    )


def _pairs(table: Source, wishes: Wishes, faults: list[Fault]) -> Iterator[tuple[str, str]]:
    """(text, label) of each row, without the space around them; faults go into `faults`."""
    wanted = (wishes.text_column, wishes.label_column)
    for number, record in enumerate(table.read()):
        if isinstance(record, tuple):
            faults += record
        elif number == 0 and (missing := column_faults(table.name, [*record.value], wanted)):
            faults += missing
            return
        else:
            cells = [_cell(record, name) for name in wanted]
            wrong = [cell for cell in cells if isinstance(cell, Fault)]
            faults += wrong
            if not wrong:
                text, label = map(str, cells)
                yield text, label
        if len(faults) >= FAULTS_KEPT:
            return


def _cell(record: Record, column: str) -> str | Fault:
    """The text in a cell. A number is a label as it is written, an empty cell no text."""
    match record.value.get(column):
        case None:
            return ""
        case str(text):
            return text.strip()
        case bool() | int() as value:
            return str(value)
        case other:
            return Fault(f"{record.where}: {column}", f"expected text; found {found(other)}")


class _Notes:
    """What the first pass notes of a table."""

    def __init__(self, table: Source, wishes: Wishes) -> None:
        """Reads the table.

        Raises:
            DatasetError: it cannot be used.
        """
        self._wishes = wishes
        self._drawn, self._label = array("Q"), array("i")
        self._empty = {"empty_text": 0, "empty_label": 0}
        self.numbers: dict[str, int] = {}
        """Of each label, in the order in which they come."""
        faults: list[Fault] = []
        for text, label in _pairs(table, wishes, faults):
            if text and label:
                self._drawn.append(draw(wishes.seed, text))
                self._label.append(self.numbers.setdefault(label, len(self.numbers)))
            else:
                self._empty["empty_label" if text else "empty_text"] += 1
        if faults:
            raise DatasetError(faults)

    def choose(self) -> Choice:
        """Of each label the texts with the smallest draws; the smallest of these for evaluation.

        A text that stands with two labels is left out wherever it stands, because no answer to it
        is right; a text that stands twice with one label is taken once.
        """
        drawn_N, label_N = np.array(self._drawn, np.uint64), np.array(self._label, np.int32)
        order_N = np.lexsort((label_N, drawn_N))
        drawn_N, label_N = drawn_N[order_N], label_N[order_N]
        new_text_N = np.append(True, drawn_N[1:] != drawn_N[:-1])
        first = np.flatnonzero(new_text_N)
        rows = np.diff(first, append=len(drawn_N))
        agreed = label_N[first] == label_N[first + rows - 1]
        texts, label = drawn_N[first[agreed]], label_N[first[agreed]]
        side: dict[int, str] = {}
        short: dict[str, int] = {}
        for name, number in sorted(self.numbers.items()):
            its = texts[label == number]
            taken = its[: self._wishes.per_category].tolist()
            held = round(self._wishes.eval_fraction * len(taken))
            side |= {drawn: VALID if n < held else TRAIN for n, drawn in enumerate(taken)}
            if len(its) < self._wishes.per_category:
                short[name] = len(its)
        left_out = {
            **self._empty,
            "contradictory": int(rows[~agreed].sum()),
            "repeated": int((rows[agreed] - 1).sum()),
            "not_drawn": len(texts) - len(side),
        }
        return Choice(side=side, left_out=left_out, short=short)


def _shortfalls(short: Mapping[str, int], labels: int, wishes: Wishes) -> list[str]:
    """What the labels that have too few texts are told as."""
    if not short:
        return []
    fewest = min(short, key=lambda label: short[label])
    said = f"{len(short):,} of {labels:,} labels have fewer than {wishes.per_category:,} texts"
    return [f"{said}; {quoted(fewest)} has the fewest: {short[fewest]:,}"]
