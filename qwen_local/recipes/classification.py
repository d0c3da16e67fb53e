"""Classification: convert a table of texts and labels to prompts that ask for the label.

The source is read twice. The first pass keeps a hash and a label of each text (12 bytes per row)
to find repeated texts and texts with two labels. The second pass collects the sampled rows. Memory
holds the hashes and the sampled rows, never the whole source.

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
from qwen_local.datasets.sources import Source, SourceSpec, locate
from qwen_local.errors import DatasetError, Fault
from qwen_local.recipes.csv_columns import column_faults
from qwen_local.recipes.output import (
    TRAIN,
    VALID,
    RecipeSummary,
    Row,
    balance,
    check_output,
    write_rows,
)
from qwen_local.recipes.subset import draw

INSTRUCTION = "Which category does this text belong to? Answer with the category alone."
CATEGORIES_FIELD = "{categories}"
"""Placeholder in an instruction that is replaced by the list of labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationOptions:
    """Options of the `classification` recipe."""

    text_column: str = "text"
    label_column: str = "label"
    per_category: int = 150
    """Maximum number of rows per label, training and evaluation together."""
    instruction: str = INSTRUCTION
    eval_fraction: float = 0.1
    """Fraction of each label's rows that goes to `valid.jsonl`."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSelection:
    """The sampled rows, identified by the hash of their text."""

    file_of: Mapping[int, str]
    """Output file of each sampled row, by the hash of its text."""
    left_out: Mapping[str, int]
    """Number of rows that are not used, by reason."""
    short: Mapping[str, int]
    """Number of different texts, for each label with fewer than `per_category`."""


def build(
    source: str, output: Path, *, overwrite: bool, options: ClassificationOptions
) -> RecipeSummary:
    """Write the folder of rows for a table.

    Raises:
        DatasetError: the source is invalid; the error lists every fault.
        JobError: the output cannot be written.
    """
    [table], _ = locate([SourceSpec(name=source)])
    check_output(output, overwrite=overwrite, sources=[Path(table.name)])
    first_pass = _FirstPass(table, options)
    labels = sorted(first_pass.label_ids)
    if len(labels) < 2:
        seen = ", ".join(map(quoted, labels)) or "none"
        problem = f"expected at least two different labels; found {seen}"
        raise DatasetError.at(f"{table.name}: {options.label_column}", problem)
    selection = first_pass.select()
    instruction = options.instruction.replace(CATEGORIES_FIELD, ", ".join(labels))
    rows: dict[str, dict[int, Row]] = {TRAIN: {}, VALID: {}}
    for text, label in _pairs(table, options, []):
        key = draw(options.seed, text)
        if label and key in selection.file_of:
            row = {"prompt": f"{instruction}\n\n{text}", "completion": label}
            rows[selection.file_of[key]][key] = row
    files = {name: [by_key[key] for key in sorted(by_key)] for name, by_key in rows.items()}
    write_rows(output, files[TRAIN], files[VALID])
    return RecipeSummary(
        output=output,
        rows={name: len(file) for name, file in files.items()},
        labels={name: balance(row["completion"] for row in file) for name, file in files.items()},
        left_out=selection.left_out,
        notes=_shortfalls(selection.short, len(labels), options),
    )


def _pairs(
    table: Source, options: ClassificationOptions, faults: list[Fault]
) -> Iterator[tuple[str, str]]:
    """Yield the stripped (text, label) of each row; append invalid rows to `faults`."""
    required = (options.text_column, options.label_column)
    for number, record in enumerate(table.read()):
        if isinstance(record, tuple):
            faults += record
        elif number == 0 and (missing := column_faults(table.name, [*record.value], required)):
            faults += missing
            return
        else:
            cells = [_cell(record, name) for name in required]
            cell_faults = [cell for cell in cells if isinstance(cell, Fault)]
            faults += cell_faults
            if not cell_faults:
                text, label = map(str, cells)
                yield text, label
        if len(faults) >= FAULTS_KEPT:
            return


def _cell(record: Record, column: str) -> str | Fault:
    """Return the text of a cell; a number becomes its text, null the empty text."""
    match record.value.get(column):
        case None:
            return ""
        case str(text):
            return text.strip()
        case bool() | int() as value:
            return str(value)
        case other:
            return Fault(f"{record.where}: {column}", f"expected text; found {found(other)}")


class _FirstPass:
    """Hashes and labels of a table, collected by the first pass."""

    def __init__(self, table: Source, options: ClassificationOptions) -> None:
        """Read the table.

        Raises:
            DatasetError: the table is invalid.
        """
        self._options = options
        self._key, self._label = array("Q"), array("i")
        self._empty = {"empty_text": 0, "empty_label": 0}
        self.label_ids: dict[str, int] = {}
        """Id of each label, in order of first occurrence."""
        faults: list[Fault] = []
        for text, label in _pairs(table, options, faults):
            if text and label:
                self._key.append(draw(options.seed, text))
                self._label.append(self.label_ids.setdefault(label, len(self.label_ids)))
            else:
                self._empty["empty_label" if text else "empty_text"] += 1
        if faults:
            raise DatasetError(faults)

    def select(self) -> RowSelection:
        """Select the texts with the smallest hashes per label, the smallest for evaluation.

        All rows of a text with two labels are left out, because no answer to it is right. A text
        that repeats with the same label is used once.
        """
        key_N, label_N = np.array(self._key, np.uint64), np.array(self._label, np.int32)
        order_N = np.lexsort((label_N, key_N))
        key_N, label_N = key_N[order_N], label_N[order_N]
        new_text_N = np.append(True, key_N[1:] != key_N[:-1])
        first = np.flatnonzero(new_text_N)
        rows = np.diff(first, append=len(key_N))
        # Labels are sorted within a text, so they all agree if the first equals the last.
        agreed = label_N[first] == label_N[first + rows - 1]
        texts, label = key_N[first[agreed]], label_N[first[agreed]]
        file_of: dict[int, str] = {}
        short: dict[str, int] = {}
        for name, label_id in sorted(self.label_ids.items()):
            candidates = texts[label == label_id]
            selected = candidates[: self._options.per_category].tolist()
            held_out = round(self._options.eval_fraction * len(selected))
            file_of |= {key: VALID if n < held_out else TRAIN for n, key in enumerate(selected)}
            if len(candidates) < self._options.per_category:
                short[name] = len(candidates)
        left_out = {
            **self._empty,
            "contradictory": int(rows[~agreed].sum()),
            "repeated": int((rows[agreed] - 1).sum()),
            "not_drawn": len(texts) - len(file_of),
        }
        return RowSelection(file_of=file_of, left_out=left_out, short=short)


def _shortfalls(short: Mapping[str, int], labels: int, options: ClassificationOptions) -> list[str]:
    """Describe the labels that have too few texts."""
    if not short:
        return []
    fewest = min(short, key=lambda label: short[label])
    note = f"{len(short):,} of {labels:,} labels have fewer than {options.per_category:,} texts"
    return [f"{note}; {quoted(fewest)} has the fewest: {short[fewest]:,}"]
