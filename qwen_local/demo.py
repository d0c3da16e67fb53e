"""Train, fuse and test the embedded model on every engine of this machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qwen_local.backends.machine import Engine, Machine
from qwen_local.backends.probe import probe
from qwen_local.backends.select import choose
from qwen_local.embedded import TINY_MODEL, sample_data_path
from qwen_local.export.fuse import fuse
from qwen_local.export.opening import ExportRequest
from qwen_local.inference.generator import Answer, Generator
from qwen_local.job.schema import read_job
from qwen_local.resolve.request import Request
from qwen_local.runs.curves import largest_difference
from qwen_local.runs.directory import check_free, default_output
from qwen_local.runs.events import TrainEvent
from qwen_local.runs.run import Run
from qwen_local.training.run import train

ANSWER_TOKENS = 96
"""More than any held-out answer needs."""
DTYPE: Literal["float32"] = "float32"
"""The same on every device, so that loss curves can be compared between engines."""
CURVE_POINTS = 11
"""Number of rows in the table of losses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineResult:
    """Results of one engine."""

    backend: str
    run: str
    exact_match_before: float
    """Fraction of held-out questions whose answer matches, including the end of turn."""
    exact_match_after: float
    ended_after: float
    """Fraction of answers after training that end with the end of turn."""
    fused: str
    """Folder of the merged model."""
    exact_match_fused: float
    """Exact match of the merged model."""
    fused_logit_difference: float
    """Largest logit difference between the merged model and the adapter in memory."""
    losses: tuple[float, ...]
    seconds: float
    """Duration of training, including loading."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """Results of all engines; `demo --json` prints them."""

    engines: tuple[EngineResult, ...]
    largest_loss_difference: float | None
    """max over steps of |a - b| / max(|b|, 0.1); None with a single engine."""

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return {
            "backends": {result.backend: asdict(result) for result in self.engines},
            "exact_match_before": {s.backend: s.exact_match_before for s in self.engines},
            "exact_match_after": {s.backend: s.exact_match_after for s in self.engines},
            "exact_match_fused": {s.backend: s.exact_match_fused for s in self.engines},
            "largest_loss_difference": self.largest_loss_difference,
        }

    def describe(self) -> str:
        """Format the loss curves side by side, and the results."""
        steps = len(self.engines[0].losses)
        shown = [max(i * steps // (CURVE_POINTS - 1), 1) - 1 for i in range(CURVE_POINTS)]
        names = "".join(f"{result.backend:>12}" for result in self.engines)
        lines = ["", f"loss at step{names}"]
        for at in shown:
            values = "".join(f"{result.losses[at]:>12.6f}" for result in self.engines)
            lines.append(f"{at + 1:>12}{values}")
        lines.append("\nexact matches on held-out questions, and answers with an end of turn")
        for title, field in (
            ("before", "exact_match_before"),
            ("after", "exact_match_after"),
            ("ended", "ended_after"),
            ("fused", "exact_match_fused"),
        ):
            values = "".join(f"{getattr(result, field):>12.0%}" for result in self.engines)
            lines.append(f"{title:>12}{values}")
        if self.largest_loss_difference is not None:
            lines.append(
                f"\nlargest difference between the curves: {self.largest_loss_difference:.1e}"
            )
        first = self.engines[0]
        lines.append(
            f"\ntry it yourself, for example with "
            '"Create a function that lists the squares of the negative days in a list.":\n'
            f"  {_program()} chat --backend {first.backend} --adapter {first.run}"
        )
        return "\n".join(lines)


def _program() -> str:
    """Return the path that started this program: `.venv/bin/qwen-local` from `make demo`."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "qwen-local" else "qwen-local"


def run_demo(output: Path | None) -> DemoResult:
    """Train on each engine, test before and after, compare the curves; progress is on stderr."""
    output = output or default_output("demo")
    check_free(output)
    questions = [
        json.loads(line)["messages"]
        for line in (sample_data_path() / "heldout.jsonl").read_text("utf-8").splitlines()
    ]
    machine = probe()
    engines = _engines(machine)
    if not engines:
        choose(machine)  # raises with the reason
    if machine.nvidia and not machine.cuda:
        _print("PyTorch is skipped: it cannot use the NVIDIA GPU of this machine (see doctor)")
    results = tuple(_result(engine, output, questions) for engine in engines)
    difference = None
    if len(results) > 1:
        difference = largest_difference(results[0].losses, results[1].losses)
    return DemoResult(engines=results, largest_loss_difference=difference)


def _engines(machine: Machine) -> list[Engine]:
    """MLX first: on a Linux CPU it must find its matrix product before PyTorch is imported."""
    engines: list[Engine] = []
    if machine.mlx:
        engines.append("mlx")
    if machine.torch and (machine.cuda or not machine.nvidia):
        engines.append("cuda")
    return engines


def _result(engine: Engine, output: Path, questions: list[list[dict[str, Any]]]) -> EngineResult:
    run = output / engine
    _print(f"\n== {engine}: {len(questions)} held-out questions, before training")
    before = _ask(engine, TINY_MODEL, None, questions)
    _print(f"exact match {_exact(before, questions):.0%}")
    started = time.monotonic()
    job = read_job(None, sets=[f"model.dtype={DTYPE}"], flags={"output": str(run)})
    train(job, backend=engine, device="auto")
    seconds = time.monotonic() - started
    after = _ask(engine, TINY_MODEL, run, questions)
    _print(f"exact match {_exact(after, questions):.0%}")
    merged = run / "fused"
    proof = fuse(ExportRequest(adapter=run, output=merged, backend=engine)).proof
    _print(f"merged into the model: {proof.describe()}")
    fused = _ask(engine, str(merged), None, questions)
    _print(f"exact match {_exact(fused, questions):.0%}")
    _print(f"\nquestion: {questions[0][0]['content']}")
    _print(f"before:   {before[0].text}\nafter:    {after[0].text}")
    return EngineResult(
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
    generator = Generator(Request(model=model, adapter=run, backend=engine, dtype=DTYPE))
    return generator.ask([messages[:-1] for messages in questions], max_tokens=ANSWER_TOKENS)


def _exact(answers: Sequence[Answer], questions: list[list[dict[str, Any]]]) -> float:
    right: int = sum(
        answer.ended_turn and answer.text == messages[-1]["content"]
        for answer, messages in zip(answers, questions, strict=True)
    )
    return right / len(questions)


def _print(text: str) -> None:
    print(text, file=sys.stderr)
