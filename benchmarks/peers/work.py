"""What one process is given to do and what it says of it. Only the standard library is needed, so
that a peer can be run in an environment of its own."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

WARM_UP = 2
"""Steps of every process that are not counted."""
FIRST = 3
"""Steps whose losses are compared."""
BATCH_SIZE = 4
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """LoRA training of all linear layers: dropout 0, AdamW without decay, a constant rate."""

    model: str
    """A folder: weights, tokenizer, chat template."""
    data: str
    """A JSON-lines file of prompt and completion, in this tool's order; all of it is one epoch."""
    folder: str
    """Where this process may write."""
    device: str
    """cpu or gpu."""
    dtype: str
    """float32 or bfloat16."""
    steps: int
    batch_size: int = BATCH_SIZE
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-4
    max_grad_norm: float = 1.0
    max_length: int = 2048
    seed: int = 0

    def save(self) -> Path:
        """Write it into its folder, for the process to read."""
        file = Path(self.folder) / "work.json"
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return file

    def rows(self) -> list[dict[str, str]]:
        """The data."""
        with Path(self.data).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a process saw."""

    ends: Sequence[float]
    """Seconds of the monotonic clock at the end of every step. On a GPU those of the last warm-up
    step and of the last step are waited for; the others may come before the work is done."""
    losses: Sequence[float]
    """Of the first steps at least: mean over the supervised tokens of a step."""
    supervised: Sequence[int]
    """Tokens of every step that were learned."""
    peak_memory_bytes: int
    """Of the process, its libraries and whatever else is in it; on a GPU what the framework took
    there."""
    arrays_bytes: int | None = None
    """Of the framework's arrays alone, at most; None where it does not count them, and on a GPU."""
    tokens: Sequence[int] | None = None
    """Tokens of every step, padding not among them."""
    packages: dict[str, str]
    settings: dict[str, Any]
    """What is worth knowing of how the tool was set."""


class FailedError(Exception):
    """Something that a comparison needs cannot be had, or a process of it did not come to its end.

    Its message names the reason in a line.
    """


def last_line(said: str) -> str:
    """Of what a process said, which is where a Python that fails gives its reason.

    >>> last_line("Traceback:\\n  ...\\nMemoryError\\n\\n")
    'MemoryError'

    Where that is our hint, the error is the line before it.

    >>> last_line("--data: no such file\\n\\nhint: name one\\n")
    '--data: no such file; hint: name one'
    """
    lines = [line for line in said.splitlines() if line.strip()]
    kept = 2 if lines and lines[-1].startswith("hint: ") else 1
    return "; ".join(lines[-kept:]) or "without a word"


def read_work() -> Work:
    """The work that the command line names."""
    return Work(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


def report_file(folder: str | Path) -> Path:
    """Where a process leaves its report. Not stdout: the tools print there as they like."""
    return Path(folder) / "report.json"


def write_report(work: Work, report: Report) -> None:
    """Leave it where the one who asked looks for it."""
    report_file(work.folder).write_text(json.dumps(asdict(report)), encoding="utf-8")


def versions(names: Iterable[str]) -> dict[str, str]:
    """Those of the packages that are installed here."""
    found = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def peak_rss() -> int:
    """Bytes of memory that this process has had at most."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def now() -> float:
    """Seconds of the clock that all processes of a machine share."""
    return time.monotonic()
