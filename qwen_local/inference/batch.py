"""Answer a file of prompts in batches; an interrupted file continues where it stopped."""

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
from qwen_local.inference.answer_file import AnswerFile
from qwen_local.inference.generator import Answer, Generator, Prompt
from qwen_local.inference.prompt_file import PromptRow, read_prompts
from qwen_local.inference.sampling_options import ALLOWED, SamplingOptions
from qwen_local.resolve.request import Request

WINDOW = 128
"""Rows from which batches of similar length are formed. Answers are written in the order of the
file, so this is also the most rows that can wait for one answer, and that a kill can lose."""
ROWS = 32
"""Maximum rows of a batch."""
POSITIONS = 1 << 14
"""Maximum padded positions of a batch, answers included; a longer row is its own batch. Their keys
and values take 1.9 GB for Qwen3-1.7B in bfloat16."""

log = logging.getLogger("qwen_local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Result of a batch; `generate --batch --json` prints it."""

    rows: int
    """Rows of the file."""
    before: int
    """Rows that earlier runs answered."""
    answered: int
    """Rows that this run wrote, including those that are too long."""
    too_long: int
    """Rows of this run that leave no room for an answer."""
    output: str
    tokens_per_second: float | None
    """Generation speed of this run; None if it generated nothing."""

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)


def check_greedy(options: SamplingOptions) -> None:
    """Reject options that would sample: batches are greedy.

    Raises:
        InputError: all such options.
    """
    faults = [
        Fault(key, "has no effect: batches are always greedy", "leave it out")
        for key in ALLOWED
        if getattr(options, key) is not None and (key, getattr(options, key)) != ("temperature", 0)
    ]
    if faults:
        raise InputError(faults)


def answer_prompts(
    request: Request,
    batch: Path,
    output: Path,
    *,
    system: str | None,
    max_tokens: int,
    thinking: bool | None = None,
    quiet: bool = False,
) -> Summary:
    """Answer every row of a file that has no answer yet.

    Args:
        request: see `Generator`.
        batch: the prompts; see `read_prompts`.
        output: gets a row for each prompt, in the same order: `id`, the prompt, `answer`,
            `finish_reason` (`stop`, `length` or `too_long`), `prompt_tokens`, `completion_tokens`.
        system: system message of rows without their own.
        max_tokens: maximum answer length.
        thinking: see `Generator`.
        quiet: True for no progress bar.

    Raises:
        InputError: rows cannot be answered, or another command wrote the output.
        RunBusyError: another process writes to the output.
    """
    prompts = read_prompts(batch)
    for key, count in prompts.ignored.items():
        log.warning("%s: unknown key %s is ignored (rows: %d)", batch, key, count)
    rows = prompts.rows
    with AnswerFile(output) as answers:
        before = answers.resume(rows)
        if before:
            log.info("%s: %d of %d rows are answered already", output, before, len(rows))
        generator = Generator(request, thinking=thinking)
        log.info("%s", generator.about)
        limits = {"max_tokens": max_tokens, "system": system}
        answers.write_settings({**limits, **generator.identity()}, resumed=before > 0)
        work = _Work(generator, answers, system=system, max_tokens=max_tokens)
        try:
            work.run(rows, before, quiet=quiet)
        except KeyboardInterrupt:
            done = before + work.written
            log.info(
                "%s: %d of %d rows; run the command again to continue", output, done, len(rows)
            )
            raise
    work.log_result()
    return Summary(
        rows=len(rows),
        before=before,
        answered=work.written,
        too_long=work.too_long,
        output=str(output),
        tokens_per_second=work.rate,
    )


class _Work:
    """Answers the rows window by window, and counts."""

    def __init__(
        self, generator: Generator, answers: AnswerFile, *, system: str | None, max_tokens: int
    ) -> None:
        self._generator, self._answers = generator, answers
        self._system, self._max_tokens = system, max_tokens
        self.written = self.too_long = self.cut = 0
        self._tokens, self._seconds = 0, 0.0

    @property
    def rate(self) -> float | None:
        """Generated tokens per second; None if none were generated."""
        return self._tokens / self._seconds if self._seconds else None

    def run(self, rows: Sequence[PromptRow], done: int, *, quiet: bool) -> None:
        """Answer the rows after the first `done`, with a progress bar."""
        with _bar(len(rows), done, quiet=quiet) as bar:
            for start in range(done, len(rows), WINDOW):
                for written in self._answer(rows[start : start + WINDOW]):
                    bar.set_postfix_str(f"{self.rate or 0:,.0f} tok/s", refresh=False)
                    bar.update(written)

    def log_result(self) -> None:
        """Log the number of answers, and of those that are cut off or missing."""
        cut = f", {self.cut} of them cut off at {self._max_tokens} tokens" if self.cut else ""
        log.info("%d rows answered%s", self.written - self.too_long, cut)
        if self.too_long:
            log.warning(
                "%d of %d rows leave no room for %d tokens in the model's %d positions (too_long)",
                self.too_long,
                self.written,
                self._max_tokens,
                self._generator.positions,
            )

    def _answer(self, rows: Sequence[PromptRow]) -> Iterator[int]:
        """Answer the rows of a window; yield the number of rows after each write."""
        prompts = self._prompts(rows)
        room = self._generator.positions - self._max_tokens
        lengths = [len(prompt.ids) for prompt in prompts]
        ready = {i: _too_long(length) for i, length in enumerate(lengths) if length > room}
        self.too_long += len(ready)
        done = 0
        fitting = {i: length for i, length in enumerate(lengths) if length <= room}
        for chosen in [*batches(fitting, self._max_tokens), []]:
            if chosen:
                answers = self._generate([prompts[i] for i in chosen])
                ready.update(zip(chosen, answers, strict=True))
            # Batches are formed by length, so an answer waits here for the rows before it.
            written = []
            while done in ready:
                written.append(_row(rows[done], ready.pop(done)))
                done += 1
            self._answers.write(written)
            self.written += len(written)
            yield len(written)

    def _generate(self, prompts: Sequence[Prompt]) -> list[Answer]:
        started = time.monotonic()
        answers = self._generator.generate(prompts, max_tokens=self._max_tokens)
        self._seconds += time.monotonic() - started
        self._tokens += sum(answer.completion_tokens for answer in answers)
        self.cut += sum(answer.finish_reason == "length" for answer in answers)
        return answers

    def _prompts(self, rows: Sequence[PromptRow]) -> list[Prompt]:
        prompts: list[Prompt] = []
        faults: list[Fault] = []
        for row in rows:
            try:
                messages = row.with_system(self._system)
                prompts.append(self._generator.prompt(messages, row.example.tools))
            except DatasetError as error:
                faults += [
                    Fault(f"{row.example.where}: {fault.where}", fault.problem, fault.hint)
                    for fault in error.faults
                ]
        if faults:
            raise DatasetError(faults)
        return prompts


def batches(lengths: dict[int, int], max_tokens: int) -> Iterator[list[int]]:
    """Group rows of similar length, the longest first.

    Args:
        lengths: number of prompt tokens by row.
        max_tokens: maximum answer length.

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
    """Return the answer of a prompt that leaves no room for one."""
    return Answer(
        text="",
        prompt_tokens=prompt_tokens,
        completion_tokens=0,
        finish_reason="too_long",
        ended_turn=False,
    )


def _row(prompt: PromptRow, answer: Answer) -> dict[str, Any]:
    return {
        "id": prompt.id,
        **prompt.copied,
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
