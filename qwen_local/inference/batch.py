"""A file of questions, answered in batches; what is answered stays answered, whatever happens."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qwen_local.errors import DatasetError, Fault, InputError
from qwen_local.inference.answer_file import Answers
from qwen_local.inference.generator import Answer, Answerer, Prompt
from qwen_local.inference.prompt_file import Question, read_questions
from qwen_local.inference.sampling_options import ALLOWED, GREEDY, Wishes

WINDOW = 128
"""Rows among which batches are put together by length; answers come in the order of the file, so as
many may wait for one that comes late."""
ROWS = 32
"""Rows of a batch, at most."""
POSITIONS = 1 << 14
"""Padded positions of a batch, answers included, at most; a longer row is alone. Their keys and
values take 1.9 GB of Qwen3-1.7B in bfloat16."""

log = logging.getLogger("qwen_local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What came of a file, as `generate --batch --json` prints it."""

    rows: int
    """Of the file."""
    before: int
    """Rows that an earlier run had answered."""
    answered: int
    """Rows that this one did, those that are too long among them."""
    too_long: int
    """Of these, rows that leave no room for an answer."""
    output: str
    tokens_per_second: float | None
    """Generated in this run; None where nothing was."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def check_greedy(wishes: Wishes) -> None:
    """Refuse flags that ask for draws: a batch takes the likeliest token each time.

    Raises:
        InputError: every flag at once.
    """
    faults = [
        Fault(
            f"--{key.replace('_', '-')}",
            "--batch takes the likeliest token each time, and draws nothing",
            "leave it out",
        )
        for key in ALLOWED
        if getattr(wishes, key) is not None and (key, getattr(wishes, key)) != ("temperature", 0)
    ]
    if faults:
        raise InputError(faults)


def answer_file(
    batch: Path, output: Path, *, system: str | None, max_tokens: int, quiet: bool, **opening: Any
) -> Summary:
    """Answer every row of a file that is not answered yet.

    Args:
        batch: see `read_questions`.
        output: takes a row for each, in their order: `id`, the question, `answer`,
            `finish_reason` (`stop`, `length` or `too_long`), `prompt_tokens`, `completion_tokens`.
        system: the system message of rows that have none.
        max_tokens: the longest answer.
        quiet: show no progress.
        **opening: as for `Answerer`, but for the wishes.

    Raises:
        InputError: rows cannot be asked, or the output is of another command.
        RunBusyError: another process writes to the output.
    """
    questions = read_questions(batch)
    for key, count in questions.ignored.items():
        log.warning("%s: the key %s means nothing here (rows: %d)", batch, key, count)
    rows = questions.rows
    with Answers(output) as answers:
        before = answers.take_up(rows)
        if before:
            log.info("%s: %d of %d rows are answered already", output, before, len(rows))
        model = Answerer(wishes=GREEDY, **opening)
        log.info("%s", model.about)
        asked = {"max_tokens": max_tokens, "system": system}
        answers.settle({**asked, **model.identity()}, begun=before > 0)
        work = _Work(model, answers, system=system, max_tokens=max_tokens)
        try:
            with _bar(len(rows), before, quiet=quiet) as bar:
                for start in range(before, len(rows), WINDOW):
                    for written in work.answer(rows[start : start + WINDOW]):
                        bar.set_postfix_str(f"{work.rate or 0:,.0f} tok/s", refresh=False)
                        bar.update(written)
        except KeyboardInterrupt:
            done = before + work.written
            log.info("%s: %d of %d rows; the same command goes on", output, done, len(rows))
            raise
    log.info(
        "%d rows answered%s",
        work.written - work.too_long,
        f", {work.cut} of them cut off at {max_tokens} tokens (--max-tokens)" if work.cut else "",
    )
    if work.too_long:
        log.warning(
            "%d of %d rows leave no room for %d tokens in the model's %d positions (too_long)",
            work.too_long,
            work.written,
            max_tokens,
            model.positions,
        )
    return Summary(
        rows=len(rows),
        before=before,
        answered=work.written,
        too_long=work.too_long,
        output=str(output),
        tokens_per_second=work.rate,
    )


class _Work:
    """Answers window by window, and counts."""

    def __init__(
        self, model: Answerer, answers: Answers, *, system: str | None, max_tokens: int
    ) -> None:
        self._model, self._answers = model, answers
        self._system, self._max_tokens = system, max_tokens
        self.written = self.too_long = self.cut = 0
        self._tokens, self._seconds = 0, 0.0

    @property
    def rate(self) -> float | None:
        """Tokens generated in a second; None where nothing was."""
        return self._tokens / self._seconds if self._seconds else None

    def answer(self, questions: Sequence[Question]) -> Iterator[int]:
        """Answer these; yield how many more rows are written, each time that some are."""
        prompts = self._prompts(questions)
        room = self._model.positions - self._max_tokens
        lengths = [len(prompt.ids) for prompt in prompts]
        ready = {i: _too_long(length) for i, length in enumerate(lengths) if length > room}
        self.too_long += len(ready)
        done = 0
        fitting = {i: length for i, length in enumerate(lengths) if length <= room}
        for chosen in [*batches(fitting, self._max_tokens), []]:
            if chosen:
                began = time.monotonic()
                said = self._model.go_on([prompts[i] for i in chosen], max_tokens=self._max_tokens)
                self._seconds += time.monotonic() - began
                self._tokens += sum(answer.completion_tokens for answer in said)
                self.cut += sum(answer.finish_reason == "length" for answer in said)
                ready.update(zip(chosen, said, strict=True))
            rows = []
            while done in ready:
                rows.append(_row(questions[done], ready.pop(done)))
                done += 1
            self._answers.write(rows)
            self.written += len(rows)
            yield len(rows)

    def _prompts(self, questions: Sequence[Question]) -> list[Prompt]:
        prompts: list[Prompt] = []
        faults: list[Fault] = []
        for question in questions:
            try:
                messages = question.behind(self._system)
                prompts.append(self._model.prompt(messages, question.example.tools))
            except DatasetError as error:
                faults += [
                    Fault(f"{question.example.where}: {fault.where}", fault.problem, fault.hint)
                    for fault in error.faults
                ]
        if faults:
            raise DatasetError(faults)
        return prompts


def batches(lengths: dict[int, int], max_tokens: int) -> Iterator[list[int]]:
    """Rows that are answered together: of like length, the longest first.

    Args:
        lengths: tokens of each row's prompt.
        max_tokens: of an answer.

    >>> list(batches({0: 5, 1: 40_000, 2: 7, 3: 30_000}, 100))
    [[1], [3], [2, 0]]
    """
    chosen: list[int] = []
    for row in sorted(lengths, key=lambda row: -lengths[row]):
        width = lengths[chosen[0] if chosen else row] + max_tokens
        if chosen and (len(chosen) == ROWS or (len(chosen) + 1) * width > POSITIONS):
            yield chosen
            chosen = []
        chosen.append(row)
    if chosen:
        yield chosen


def _too_long(prompt_tokens: int) -> Answer:
    """What stands for the answer to a prompt that leaves no room for one."""
    return Answer(
        text="",
        prompt_tokens=prompt_tokens,
        completion_tokens=0,
        finish_reason="too_long",
        ended_turn=False,
    )


def _row(question: Question, answer: Answer) -> dict[str, Any]:
    return {
        "id": question.id,
        **question.asked,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
    }


def _bar(rows: int, done: int, *, quiet: bool) -> tqdm[Any]:
    return tqdm(
        total=rows,
        initial=done,
        unit=" rows",
        dynamic_ncols=True,
        disable=quiet or not sys.stderr.isatty(),
    )
