"""CodeAlpaca: coding questions whose answers have their code in Markdown fences."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from qwen_local.datasets.faults import FAULTS_KEPT
from qwen_local.datasets.formats import Example
from qwen_local.datasets.record_files import Faults
from qwen_local.datasets.sources import SourceSpec, locate
from qwen_local.errors import DatasetError, Fault
from qwen_local.recipes.fences import FencedAnswer, fenced
from qwen_local.recipes.output import (
    TRAIN,
    VALID,
    RecipeSummary,
    Row,
    balance,
    check_output,
    write_rows,
)
from qwen_local.recipes.subset import draw, held_out

FORMAT = "alpaca"


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeAlpacaOptions:
    """Options of the `code-alpaca` recipe."""

    rows: int | None = None
    """Number of rows, training and evaluation together; None for all."""
    sample: bool = False
    """True to sample from the whole source, False to take its first rows."""
    eval_fraction: float = 0.1
    """Fraction of the rows that goes to `valid.jsonl`."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Exercise:
    """A question and its fenced answer."""

    before: Sequence[Mapping[str, Any]]
    """Messages of the conversation before the answer."""
    question: str
    answer: FencedAnswer
    key: int
    """Hash of question and answer, which decides the sampling."""

    def row(self) -> Row:
        """Return the row in the `messages` format, which can hold a system message."""
        answer = {"role": "assistant", "content": self.answer.text}
        return {"messages": [*self.before, answer]}


def build(
    source: str, output: Path, *, overwrite: bool, options: CodeAlpacaOptions
) -> RecipeSummary:
    """Write the folder of rows for CodeAlpaca's file, or for a Hub data set in its format.

    Memory holds the selected rows. The source is read once; without `sample`, reading stops after
    the last selected row.

    Raises:
        DatasetError: the source is invalid; the error lists every fault in the part that was read.
        JobError: the output cannot be written.
    """
    [found], _ = locate([SourceSpec(name=source)])
    check_output(output, overwrite=overwrite, sources=[Path(found.name)])
    reader = _Reader(options.seed)
    exercises = reader.exercises(found.examples())
    if options.sample and options.rows is not None:
        selected = heapq.nsmallest(options.rows, exercises, key=lambda exercise: exercise.key)
    else:
        selected = list(islice(exercises, options.rows))
    if reader.faults:
        raise DatasetError(reader.faults)
    if not selected:
        raise DatasetError.at(found.name, "contains no question with an answer")
    held = held_out(
        Counter(exercise.question for exercise in selected),
        fraction=options.eval_fraction,
        seed=options.seed,
    )
    files = {
        TRAIN: [exercise for exercise in selected if exercise.question not in held],
        VALID: [exercise for exercise in selected if exercise.question in held],
    }
    write_rows(output, *([exercise.row() for exercise in file] for file in files.values()))
    notes = []
    if options.rows is not None and len(selected) < options.rows:
        notes.append(f"{len(selected):,} rows, not {options.rows:,}: the source has no more")
    return RecipeSummary(
        output=output,
        rows={name: len(file) for name, file in files.items()},
        labels={name: balance(e.answer.kind for e in file) for name, file in files.items()},
        left_out={**reader.left_out, "not_drawn": reader.usable - len(selected)},
        notes=notes,
    )


class _Reader:
    """Reader of a source that collects its faults and counts the rows it leaves out."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.faults: list[Fault] = []
        self.left_out = {"empty_answer": 0, "repeated": 0}
        self.usable = 0

    def exercises(self, read: Iterable[Example | Faults]) -> Iterator[Exercise]:
        """Yield the exercises, each once."""
        seen: set[int] = set()
        for example in read:
            if isinstance(example, tuple):
                self.faults += example
            elif example.format != FORMAT:
                problem = f"expected the {FORMAT} format; found the {example.format} format"
                hint = "train reads this format directly; no recipe is needed"
                self.faults.append(Fault(example.where, problem, hint))
            elif exercise := self._exercise(example, seen):
                self.usable += 1
                yield exercise
            if len(self.faults) >= FAULTS_KEPT:
                return

    def _exercise(self, example: Example, seen: set[int]) -> Exercise | None:
        assert not isinstance(example.content, str)  # this format has messages
        *before, last = example.content
        question = "\n".join(message["content"] for message in before)
        key = draw(self._seed, question, last["content"])
        if example.empty or key in seen:
            self.left_out["empty_answer" if example.empty else "repeated"] += 1
            return None
        seen.add(key)
        answer = fenced(question, last["content"])
        return Exercise(before=before, question=question, answer=answer, key=key)
