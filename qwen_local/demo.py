"""The whole story on the embedded model, on every engine that this machine has."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qwen_local.backends.select import Engine, Machine, choose, probe
from qwen_local.embedded import TINY_MODEL, sample_data_path
from qwen_local.export.fuse import fuse
from qwen_local.export.opening import ExportRequest
from qwen_local.inference.generator import Answer, Answerer
from qwen_local.job.schema import read_job
from qwen_local.runs.curves import largest_difference
from qwen_local.runs.directory import check_free, default_output
from qwen_local.runs.events import TrainEvent
from qwen_local.runs.run import Run
from qwen_local.training.run import train

ANSWER_TOKENS = 96
"""Longer than any answer of the held-out rows."""
DTYPE: Literal["float32"] = "float32"
"""On every device: only so do the curves say anything about the engines."""
CURVE_POINTS = 11
"""Rows of the printed table of losses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStory:
    """What happened on one engine."""

    backend: str
    run: str
    exact_match_before: float
    """Share of the held-out questions whose whole answer, end of turn included, is right."""
    exact_match_after: float
    ended_after: float
    """Share of the answers after training that end with the end of turn."""
    fused: str
    """The folder of the merged model."""
    exact_match_fused: float
    """As after training, of the merged model."""
    fused_logit_difference: float
    """The largest between it and the live adapter."""
    losses: tuple[float, ...]
    seconds: float
    """Of the training command, loading included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What `demo --json` prints."""

    engines: tuple[EngineStory, ...]
    largest_loss_difference: float | None
    """max over steps of |a - b| / max(|b|, 0.1); None with a single engine."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "backends": {story.backend: asdict(story) for story in self.engines},
            "exact_match_before": {s.backend: s.exact_match_before for s in self.engines},
            "exact_match_after": {s.backend: s.exact_match_after for s in self.engines},
            "exact_match_fused": {s.backend: s.exact_match_fused for s in self.engines},
            "largest_loss_difference": self.largest_loss_difference,
        }

    def describe(self) -> str:
        """Both curves side by side, and what came of them."""
        steps = len(self.engines[0].losses)
        shown = [max(i * steps // (CURVE_POINTS - 1), 1) - 1 for i in range(CURVE_POINTS)]
        names = "".join(f"{story.backend:>12}" for story in self.engines)
        lines = ["", f"loss at step{names}"]
        for at in shown:
            values = "".join(f"{story.losses[at]:>12.6f}" for story in self.engines)
            lines.append(f"{at + 1:>12}{values}")
        lines.append("\nheld-out questions answered word for word, and answers that end properly")
        for title, field in (
            ("before", "exact_match_before"),
            ("after", "exact_match_after"),
            ("ended", "ended_after"),
            ("fused", "exact_match_fused"),
        ):
            values = "".join(f"{getattr(story, field):>12.0%}" for story in self.engines)
            lines.append(f"{title:>12}{values}")
        if self.largest_loss_difference is not None:
            lines.append(f"\nlargest difference of the curves: {self.largest_loss_difference:.1e}")
        first = self.engines[0]
        lines.append(
            f"\nask it yourself, for example to "
            '"Create a function that lists the squares of the negative days in a list.":\n'
            f"  {_program()} chat --backend {first.backend} --adapter {first.run}"
        )
        return "\n".join(lines)


def _program() -> str:
    """How this program was called: `.venv/bin/qwen-local` from `make demo`."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "qwen-local" else "qwen-local"


def run_demo(output: Path | None) -> DemoResult:
    """Train on each engine, ask before and after, compare the curves; talks on stderr."""
    output = output or default_output("demo")
    check_free(output)
    questions = [
        json.loads(line)["messages"]
        for line in (sample_data_path() / "heldout.jsonl").read_text("utf-8").splitlines()
    ]
    machine = probe()
    engines = _engines(machine)
    if not engines:
        choose(machine)  # says what is missing
    if machine.nvidia and not machine.cuda:
        _say("PyTorch is left out: it cannot use the NVIDIA card of this machine (see doctor)")
    stories = tuple(_story(engine, output, questions) for engine in engines)
    difference = None
    if len(stories) > 1:
        difference = largest_difference(stories[0].losses, stories[1].losses)
    return DemoResult(engines=stories, largest_loss_difference=difference)


def _engines(machine: Machine) -> list[Engine]:
    """MLX first: on a Linux CPU it must find its matrix product before PyTorch is imported."""
    engines: list[Engine] = []
    if machine.mlx:
        engines.append("mlx")
    if machine.torch and (machine.cuda or not machine.nvidia):
        engines.append("cuda")
    return engines


def _story(engine: Engine, output: Path, questions: list[list[dict[str, Any]]]) -> EngineStory:
    run = output / engine
    _say(f"\n== {engine}: {len(questions)} held-out questions, before training")
    before = _ask(engine, TINY_MODEL, None, questions)
    _say(f"exact match {_exact(before, questions):.0%}")
    began = time.monotonic()
    job = read_job(None, sets=[f"model.dtype={DTYPE}"], flags={"--output": str(run)})
    train(job, backend=engine, device="auto")
    seconds = time.monotonic() - began
    after = _ask(engine, TINY_MODEL, run, questions)
    _say(f"exact match {_exact(after, questions):.0%}")
    merged = run / "fused"
    proof = fuse(ExportRequest(adapter=run, output=merged, backend=engine)).proof
    _say(f"merged into the model: {proof.describe()}")
    fused = _ask(engine, str(merged), None, questions)
    _say(f"exact match {_exact(fused, questions):.0%}")
    _say(f"\nquestion: {questions[0][0]['content']}")
    _say(f"before:   {before[0].text}\nafter:    {after[0].text}")
    return EngineStory(
        backend=engine,
        run=str(run),
        exact_match_before=_exact(before, questions),
        exact_match_after=_exact(after, questions),
        ended_after=sum(answer.ended_turn for answer in after) / len(after),
        fused=str(merged),
        exact_match_fused=_exact(fused, questions),
        fused_logit_difference=proof.max_logit_difference,
        losses=tuple(event.loss for event in Run(run).events_of(TrainEvent)),
        seconds=seconds,
    )


def _ask(
    engine: Engine, model: str, run: Path | None, questions: list[list[dict[str, Any]]]
) -> list[Answer]:
    answerer = Answerer(model, adapter=run, backend=engine, device="auto", dtype=DTYPE)
    return answerer.ask([messages[:-1] for messages in questions], max_tokens=ANSWER_TOKENS)


def _exact(answers: Sequence[Answer], questions: list[list[dict[str, Any]]]) -> float:
    right: int = sum(
        answer.ended_turn and answer.text == messages[-1]["content"]
        for answer, messages in zip(answers, questions, strict=True)
    )
    return right / len(questions)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
