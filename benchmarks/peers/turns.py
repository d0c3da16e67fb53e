"""The processes of a comparison, one after another, in turns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import compare
from benchmarks.peers.models import make_model
from benchmarks.peers.orders import placed, reading_order
from benchmarks.peers.work import BATCH_SIZE, FailedError, Work, last_line, report_file
from benchmarks.peers.workloads import Row, made_rows, real_rows

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """A tool, and what runs it."""

    module: str
    """Below `benchmarks.peers.sides`."""
    needs: tuple[str, ...]
    """Modules that must be there."""
    backend: str = ""
    """Of ours."""


SIDES: Mapping[str, Side] = {
    "ours-torch": Side(module="ours", needs=("qwen_local", "torch"), backend="cuda"),
    "ours-mlx": Side(module="ours", needs=("qwen_local", "mlx_lm"), backend="mlx"),
    "trl": Side(module="trl", needs=("trl", "peft")),
    "mlx-lm": Side(module="mlx_lm", needs=("mlx_lm",)),
    "llama-factory": Side(module="llama_factory", needs=("llamafactory",)),
    "unsloth": Side(module="unsloth", needs=("unsloth",)),
}
LOOK = (
    "import importlib.util, sys\n"
    "print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Some tools, one model, one workload."""

    model: str
    workload: str
    tools: tuple[str, ...]
    file: Path | None = None
    """Of a real workload."""

    @property
    def name(self) -> str:
        """As `--only` takes it."""
        return f"{self.model}/{self.workload}"


def compared(
    one: Comparison,
    folder: Path,
    pythons: Mapping[str, str],
    device: str,
    *,
    rounds: int,
    steps: int,
) -> dict[str, Any]:
    """The figures of a comparison, and every report behind them.

    A peer that is not installed, or that fails, is left out and the reason given.

    Args:
        one: the comparison.
        folder: for models and for what the processes write.
        pythons: interpreters of tools that have an environment of their own.
        device: cpu or gpu.
        rounds: turns of every tool.
        steps: of a process.

    Raises:
        FailedError: there is no comparison, because ours is not installed or failed, or because
            the model cannot be made.
    """
    dtype = "float32" if device == "cpu" else "bfloat16"
    skipped: dict[str, str] = {}
    for tool in one.tools:
        if missing := lacking(pythons.get(tool, sys.executable), SIDES[tool].needs):
            skipped[tool] = f"not installed: {', '.join(missing)}"
    if all(tool in skipped for tool in one.tools if SIDES[tool].backend):
        raise FailedError("; ".join(f"{tool}: {why}" for tool, why in skipped.items()))
    rows = steps * BATCH_SIZE
    content = made_rows(one.workload, rows) if one.file is None else real_rows(one.file, rows)
    model = make_model(one.model, dtype, folder)
    reports: list[dict[str, Any]] = []
    for number in range(rounds):
        # Every other round in the opposite order, against a machine that grows warm.
        reports.append({})
        for tool in one.tools if number % 2 == 0 else one.tools[::-1]:
            if tool in skipped:
                continue
            scratch = folder / "turn"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            work = Work(
                model=str(model),
                data=str(laid_out(tool, content, scratch)),
                folder=str(scratch),
                device=device,
                dtype=dtype,
                steps=steps,
            )
            try:
                report = run(tool, work, pythons.get(tool, sys.executable))
            except FailedError as error:
                if SIDES[tool].backend:
                    raise
                skipped[tool] = str(error)
                continue
            reports[-1][tool] = report
            said = f"{one.name}, round {number + 1}: {tool}: {compare.seconds(report):.1f} s"
            print(f"{said}, its start left out", file=sys.stderr, flush=True)
    taken = [{tool: by[tool] for tool in one.tools if tool not in skipped} for by in reports]
    figures = compare.comparison(taken, batch_size=BATCH_SIZE, dtype=dtype)
    return {**figures, "dtype": dtype, "skipped": skipped, "reports": taken}


def lacking(python: str, needs: Sequence[str]) -> list[str]:
    """Which of these modules an interpreter does not find.

    Raises:
        FailedError: it is no Python that can be run.
    """
    command = [python, "-c", LOOK, *needs]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FailedError(f"{python}: {error.strerror}") from error
    if done.returncode:
        said = last_line(done.stderr)
        raise FailedError(f"{python} ended with {done.returncode}: {said}")
    return done.stdout.split()


def laid_out(tool: str, rows: Sequence[Row], folder: Path) -> Path:
    """The rows in a file, so that this tool trains on them in their order."""
    order = reading_order(tool, len(rows), batch_size=BATCH_SIZE, seed=0)
    file = folder / "rows.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for row in placed(rows, order):
            out.write(json.dumps(row) + "\n")
    return file


def run(tool: str, work: Work, python: str) -> dict[str, Any]:
    """What a tool reports, in a process of its own.

    Raises:
        FailedError: it failed; with the last line that it said.
    """
    side, scratch = SIDES[tool], Path(work.folder)
    with (scratch / "log").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [python, "-m", f"benchmarks.peers.sides.{side.module}", str(work.save())],
            cwd=ROOT,
            env={
                **os.environ,
                "BACKEND": side.backend,
                "HF_HUB_OFFLINE": "1",
                "HF_DATASETS_CACHE": str(scratch / "cache"),
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode or not report_file(scratch).exists():
        said = last_line((scratch / "log").read_text(encoding="utf-8", errors="replace"))
        raise FailedError(f"{tool} ended with {done.returncode}: {said}")
    report: dict[str, Any] = json.loads(report_file(scratch).read_text(encoding="utf-8"))
    return report
