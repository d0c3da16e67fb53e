"""A benchmark in parts, each a process of its own with a deadline, within a budget of time.

A crash, a hang or a kill costs the part that it falls into and nothing that was found before: a
part hands over its figures one by one, and the result is written after each part. What did not run
is said with its reason.

A *check* is a figure with a bound that it must keep; other figures are just measured.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.result import RESULTS, without_places, write

Device = Literal["cpu", "gpu"]
Figure = Mapping[str, Any]

ZERO = 1e-6
"""Anything that is compared is larger than this, or nothing computed it."""
LEAST = 10.0
"""Seconds without which no part is begun: frameworks take some of them to load."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One thing to be measured."""

    name: str
    work: Callable[[Device, Path], Iterator[Figure]]
    """Yields figures as they are found, of what JSON holds. The folder is for models that other
    parts may use, too."""
    seconds: float
    """Time that it may take in any case; `limit` adds what earlier parts did not use."""
    needs: tuple[str, ...] = ()
    """Modules without which it is skipped."""
    card: bool = False
    """Whether it means nothing on a CPU, and is skipped there."""


def check(name: str, value: float, *, at_most: float) -> Figure:
    """A figure with its bound; no number at all does not hold.

    >>> check("apart", 0.25, at_most=0.5)
    {'check': 'apart', 'value': 0.25, 'at_most': 0.5, 'holds': True}
    """
    holds = bool(value <= at_most)
    return {"check": name, "value": float(value), "at_most": at_most, "holds": holds}


def unless_zero(value: float, *compared: float) -> float:
    """Return a value for a check, or NaN, which fails it, if something compared is zero.

    A device that computes nothing returns zeros, or what lay in its memory, and zeros agree with
    zeros.

    Args:
        value: a difference, a ratio, a count.
        compared: what it was made of, or the largest magnitude of that.

    >>> unless_zero(0.0, 3.1, 3.1), unless_zero(0.0, 0.0, 0.0)
    (0.0, nan)
    """
    return value if all(abs(one) > ZERO for one in compared) else math.nan


def relative(a: float, b: float) -> float:
    """Return |a - b| / |b|, or NaN if one of them is zero.

    >>> relative(3.0, 2.0), relative(0.0, 0.0)
    (0.5, nan)
    """
    return unless_zero(abs(a - b) / (abs(b) or 1), a, b)


def ratio(a: float, b: float) -> float:
    """Return a / b, or NaN if one of them is zero.

    >>> ratio(3.0, 2.0), ratio(0.0, 0.0)
    (1.5, nan)
    """
    return unless_zero(a / (b or 1), a, b)


def limit(seconds: float, *, saved: float, left: float) -> float:
    """Return how long a part may run.

    What earlier parts did not use is for those after them, but no part more than doubles its time.

    Args:
        seconds: of the part.
        saved: time that earlier parts were given and did not use.
        left: of the budget.

    >>> limit(60, saved=25, left=400), limit(60, saved=100, left=400), limit(60, saved=25, left=70)
    (85, 120, 70)
    """
    return min(seconds + min(max(saved, 0), seconds), left)


def skipped(reason: str) -> Figure:
    """Instead of figures: why there are none."""
    return {"skipped_because": reason}


def impossible(reason: str) -> Figure:
    """From the first part, instead of figures: why no part can run here."""
    return {"impossible_because": reason}


def main(parts: Sequence[Part], *, module: str, name: str, about: str | None, budget: int) -> None:
    """The command line of such a benchmark; exit code 1 where a check fails or a part does.

    Exit code 2, and no result, where the first part finds the machine `impossible`.

    Args:
        parts: the most valuable first. The first says what the machine is: its figure's `card`
            names the file.
        module: what `python -m` runs.
        name: of the file, before the card's.
        about: what `--help` says.
        budget: seconds for all of it.
    """
    parser = argparse.ArgumentParser(
        prog=f"benchmarks/{name}/run",
        description=about,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="the folder of the result; benchmarks/results, of a rehearsal a temporary one",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=budget,
        help=f"for all parts together; {budget}. With more, each part has more in proportion",
    )
    parser.add_argument(
        "--only",
        choices=[part.name for part in parts],
        action="append",
        help=f"this part; may be given several times; {parts[0].name} is always run",
    )
    parser.add_argument(
        "--device",
        choices=["gpu", "cpu"],
        default="gpu",
        help="cpu rehearses it where there is no card, on smaller models",
    )
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.into:
        (part,) = (part for part in parts if part.name == given.only[0])
        hand_over(part, given.device, given.scratch, given.into)
        return
    chosen = [
        replace(part, seconds=part.seconds * max(1.0, given.seconds / budget))
        for part in parts
        if part is parts[0] or part.name in (given.only or [part.name])
    ]
    rehearsal = given.device == "cpu"
    folder = given.output or (Path(tempfile.mkdtemp()) if rehearsal else RESULTS)
    whole = run_all(
        chosen,
        command=[sys.executable, "-m", module],
        device=given.device,
        budget=given.seconds,
        folder=folder,
        name=name,
    )
    sys.exit(not whole["holds"])


def hand_over(part: Part, device: Device, scratch: Path, file: Path) -> None:
    """Do a part, and append each figure to a file as a line."""
    with file.open("a", encoding="utf-8") as out:
        for figure in part.work(device, scratch):
            out.write(json.dumps(figure) + "\n")
            out.flush()


def run_all(
    parts: Sequence[Part],
    *,
    command: Sequence[str],
    device: Device,
    budget: float,
    folder: Path,
    name: str,
) -> dict[str, Any]:
    """Every part in turn; the result, which is also written after each of them.

    Args:
        parts: see `main`.
        command: does a part, with `--device`, `--only`, `--scratch` and `--into` after it.
        device: where.
        budget: seconds for all of them.
        folder: of the result.
        name: of its file, before the card's.

    Raises:
        SystemExit: with code 2, where the first part finds that none can run here.
    """
    began = time.monotonic()
    given = 0.0
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, part in enumerate(parts):
            used = time.monotonic() - began
            most = limit(part.seconds, saved=given - used, left=budget - used)
            done.append(_one(part, [*command, "--device", device], device, most, Path(scratch)))
            given += part.seconds
            for figure in done[0]["figures"]:
                if "impossible_because" in figure:
                    print(figure["impossible_because"], file=sys.stderr)
                    sys.exit(2)
            print(described(done[-1]), file=sys.stderr, flush=True)
            result = {
                "command": f"benchmarks/{name}/run",
                "date": datetime.date.today().isoformat(),
                "device": device,
                "seconds": round(time.monotonic() - began, 1),
                "budget_seconds": budget,
                "holds": holds(done),
                "parts": done,
                "still_to_come": [later.name for later in parts[number + 1 :]],
            }
            file = folder / f"{name}-{slug(_card(done))}.json"
            write(result, file, Path(scratch))
    print(file)
    return result


def holds(done: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every part that ran ended well and every check kept its bound."""
    checks = [f for part in done for f in part["figures"] if "check" in f]
    return all(part["outcome"] != "failed" for part in done) and all(f["holds"] for f in checks)


def described(part: Mapping[str, Any]) -> str:
    """A part in a line, and a line for each of its checks."""
    lines = [f"{part['name']}: {part['outcome']} after {part['seconds']:.0f} s"]
    if "why" in part:
        lines[0] += f" ({part['why']})"
    for figure in part["figures"]:
        if "check" in figure:
            sign = "ok  " if figure["holds"] else "FAIL"
            lines.append(f"  {sign} {figure['check']}: {figure['value']:.3g}")
            lines[-1] += f" (at most {figure['at_most']:g})"
    return "\n".join(lines)


def slug(name: str) -> str:
    """A name as part of a file's.

    >>> slug("NVIDIA GeForce RTX 3090 (24 GB)")
    'nvidia-geforce-rtx-3090-24-gb'
    """
    return re.sub("[^a-z0-9.]+", "-", name.lower()).strip("-")


def _card(done: Sequence[Mapping[str, Any]]) -> str:
    """What the first part says of the machine."""
    figures = done[0]["figures"]
    return str(figures[0].get("card") or "unknown") if figures else "unknown"


def _one(
    part: Part, command: Sequence[str], device: Device, most: float, shared: Path
) -> dict[str, Any]:
    """Run a part in a process of its own for at most `most` seconds; return its figures."""

    def told(outcome: str, why: str | None = None, **more: Any) -> dict[str, Any]:
        reason = {} if why is None else {"why": why}
        plain = {"name": part.name, "outcome": outcome, **reason, "seconds": 0.0, "figures": []}
        return plain | more

    absent = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if part.card and device == "cpu":
        return told("skipped", "it needs a card")
    if absent:
        return told("skipped", f"{' and '.join(absent)} not installed")
    if most < min(LEAST, part.seconds):
        return told("not run", "no time was left for it")
    began = time.monotonic()
    words = ["--only", part.name, "--scratch", str(shared)]
    with tempfile.TemporaryDirectory() as scratch:
        file, said = Path(scratch, "figures"), Path(scratch, "said")
        file.touch()
        with said.open("wb") as out:
            process = subprocess.Popen(
                [*command, *words, "--into", str(file)],
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
            outcome, why = "done", None
            try:
                if process.wait(most):
                    outcome, why = "failed", f"exit code {process.returncode}"
            except subprocess.TimeoutExpired:
                outcome, why = "out of time", f"stopped after {most:.0f} s"
            finally:
                with suppress(ProcessLookupError):  # what it started is in its group
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        figures = whole_lines(file)
        if outcome == "failed":
            spoken = said.read_text("utf-8", errors="replace").strip()
            print(spoken, file=sys.stderr)
            last = spoken.splitlines()[-1] if spoken else "without a word"
            # Before it is cut, so that none of them is cut, too.
            why = f"{why}: {without_places(last, shared)[:300]}"
        if outcome != "done":
            for unfinished in shared.glob("*.begun"):  # a model has its name when it is whole
                shutil.rmtree(unfinished, ignore_errors=True)
    reasons = [figure["skipped_because"] for figure in figures if "skipped_because" in figure]
    if outcome == "done" and reasons and len(reasons) == len(figures):
        outcome, why = "skipped", "; ".join(reasons)
    seconds = round(time.monotonic() - began, 1)
    return told(outcome, why, seconds=seconds, figures=figures)


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """The figures that were written to their end."""
    figures = []
    for line in file.read_text("utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            figures.append(json.loads(line))
    return figures
