"""CodeAlpaca with its code in fences: what a coding assistant is to answer."""

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
from qwen_local.datasets.sources import Wanted, locate
from qwen_local.errors import DatasetError, Fault
from qwen_local.recipes.fences import Answer, fenced
from qwen_local.recipes.output import TRAIN, VALID, Row, Summary, balance, check_output, write_rows
from qwen_local.recipes.subset import draw, held_out

FORMAT = "alpaca"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the rows are to be like."""

    rows: int | None = None
    """Of both files together; None for all."""
    sample: bool = False
    """Drawn from the whole source; otherwise its first rows."""
    eval_fraction: float = 0.1
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Exercise:
    """A question and its answer as it is to be learned."""

    before: Sequence[Mapping[str, Any]]
    """The messages of the conversation that come before the answer."""
    question: str
    answer: Answer
    drawn: int

    def row(self) -> Row:
        """In the `messages` format, which also has room for a system message."""
        said = {"role": "assistant", "content": self.answer.text}
        return {"messages": [*self.before, said]}


def build(source: str, output: Path, *, overwrite: bool, wishes: Wishes) -> Summary:
    """The folder of rows from CodeAlpaca's file, or from a data set on the hub that is like it.

    The rows that are chosen are held in memory; the source is read once, and without `sample` no
    further than they reach.

    Raises:
        DatasetError: the source cannot be used; every fault in what was read of it is named.
        JobError: the output cannot be written.
    """
    [found], _ = locate([Wanted(name=source)])
    check_output(output, overwrite=overwrite, sources=[Path(found.name)])
    reading = _Reading(wishes.seed)
    every = reading.exercises(found.examples())
    if wishes.sample and wishes.rows is not None:
        chosen = heapq.nsmallest(wishes.rows, every, key=lambda exercise: exercise.drawn)
    else:
        chosen = list(islice(every, wishes.rows))
    if reading.faults:
        raise DatasetError(reading.faults)
    if not chosen:
        raise DatasetError.at(found.name, "gives no row: it holds no question with an answer")
    held = held_out(
        Counter(exercise.question for exercise in chosen),
        fraction=wishes.eval_fraction,
        seed=wishes.seed,
    )
    sides = {
        TRAIN: [exercise for exercise in chosen if exercise.question not in held],
        VALID: [exercise for exercise in chosen if exercise.question in held],
    }
    write_rows(output, *([exercise.row() for exercise in side] for side in sides.values()))
    notes = []
    if wishes.rows is not None and len(chosen) < wishes.rows:
        notes.append(f"{len(chosen):,} rows, not {wishes.rows:,}: the source has no more")
    return Summary(
        output=output,
        rows={name: len(side) for name, side in sides.items()},
        labels={name: balance(e.answer.kind for e in side) for name, side in sides.items()},
        left_out={**reading.left_out, "not_drawn": reading.usable - len(chosen)},
        notes=notes,
    )


class _Reading:
    """A source being read: what is wrong with it, and what of it is left out."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.faults: list[Fault] = []
        self.left_out = {"empty_answer": 0, "repeated": 0}
        self.usable = 0

    def exercises(self, read: Iterable[Example | Faults]) -> Iterator[Exercise]:
        """The exercises, each once."""
        seen: set[int] = set()
        for example in read:
            if isinstance(example, tuple):
                self.faults += example
            elif example.format != FORMAT:
                problem = f"expected the {FORMAT} format; found the {example.format} format"
                hint = "`train` reads it as it is"
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
        drawn = draw(self._seed, question, last["content"])
        if example.says_nothing or drawn in seen:
            self.left_out["empty_answer" if example.says_nothing else "repeated"] += 1
            return None
        seen.add(drawn)
        answer = fenced(question, last["content"])
        return Exercise(before=before, question=question, answer=answer, drawn=drawn)
