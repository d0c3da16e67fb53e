"""A training process that is begun again when it dies (`train.restarts`).

Some deaths nobody can catch in the process that dies: Metal aborts, the system kills what takes too
much memory, and after an "illegal memory access" no CUDA call works any more. So the training runs
in a child (`supervised.py`), and the parent, which imports no engine, waits for it, hands signals
on, and begins it again from its newest checkpoint with half the micro-batch budget.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Self

from qwen_local.console.log import talk
from qwen_local.console.signals import STOPPING, handled
from qwen_local.errors import JobError, QwenLocalError
from qwen_local.job.schema import Draft
from qwen_local.runs.checkpoints import step_name, steps_in
from qwen_local.runs.directory import CHECKPOINTS, run_folder
from qwen_local.runs.events import METRICS, how_it_ended, read_metrics
from qwen_local.training.child import CRASHED, VARIABLE, Supervised
from qwen_local.training.resume import find_run, resume_command

log = logging.getLogger("qwen_local")

Command = Callable[[bool], Sequence[str]]
"""(whether the run goes on from its newest checkpoint) -> the process to start."""


class DiedError(QwenLocalError):
    """The training process died, and is not begun again."""


def train_supervised(
    draft: Draft,
    arguments: Sequence[str],
    *,
    job: Path | None,
    resume: str | None,
    quiet: bool,
    debug: bool,
) -> int:
    """Run `qwen-local train` in a process that is begun again where it dies.

    Args:
        draft: the job, with at least one restart.
        arguments: of `qwen-local train`, as the user gave them.
        job: the file among them that `draft` was read from.
        resume: as `--resume`; None for a new run.
        quiet: say nothing on stderr.
        debug: as `qwen-local --debug`.

    Returns:
        The exit code of the last process.

    Raises:
        InputError: `resume` names no run, or the job cannot be read again.
        DiedError: it died once more, or while it was being stopped.
    """
    if job is not None and not job.is_file():
        raise JobError.at(
            "train.restarts",
            f"{job} is no file: it can be read once, and each process reads the job",
            "write the job to a file, or set train.restarts to 0",
        )
    # Found once, and said to every process: a default output would be another one each time.
    folder = run_folder(draft.job) if resume is None else find_run(draft, resume).folder
    program = [*this_program(), *(["--debug"] if debug else [])]

    def command(goes_on: bool) -> Sequence[str]:
        given = without_resume(arguments) if goes_on else arguments
        going_on = [f"--resume={folder}"] if goes_on else []
        return [*program, "train", f"--output={folder}", *going_on, *given]

    with talk(quiet=quiet):
        return supervise(folder, command, restarts=draft.job.train.restarts)


def supervise(folder: Path, command: Command, *, restarts: int) -> int:
    """Run a process to its end, and again where it dies.

    Args:
        folder: of the run. What the process did is read from its files.
        command: gives the process.
        restarts: how often at most.

    Returns:
        The exit code of the last process.

    Raises:
        DiedError: it died once more, or while it was being stopped.
    """
    begun = _written(folder)
    budget: int | None = None
    deaths: list[str] = []
    with _Relay() as relay:
        while True:
            before = _written(folder)
            returncode = relay.run(
                command(before != begun),
                restarts=len(deaths),
                died_of=deaths[-1] if deaths else None,
                micro_batch_tokens=budget,
            )
            died_of = cause_of_death(returncode)
            if died_of is None:
                return exit_code(returncode)
            deaths.append(died_of)
            if _written(folder) != before and how_it_ended(folder / METRICS) is not None:
                log.info("the training process died of %s after all was done", died_of)
                return 0
            if relay.asked or len(deaths) > restarts:
                raise DiedError(_obituary(folder, deaths, stopping=relay.asked))
            budget = halved(folder, budget)
            log.info("%s", _notice(folder, deaths, restarts, budget))


class _Relay:
    """Starts processes one after the other, and hands signals on to the one that runs.

    Each has a session of its own, so that Ctrl+C in the terminal comes to it once, from here.
    """

    def __init__(self) -> None:
        self.asked = False
        """Whether a signal came."""
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._handled = handled(STOPPING, self._hand_on)

    def __enter__(self) -> Self:
        self._handled.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handled.__exit__(None, None, None)

    def run(
        self,
        command: Sequence[str],
        *,
        restarts: int,
        died_of: str | None,
        micro_batch_tokens: int | None,
    ) -> int:
        """Run a process to its end; the keywords are those of `Supervised`.

        Returns:
            Its exit code, or minus the signal that killed it.
        """
        pipe, held = os.pipe()
        told = Supervised(
            pipe=pipe, restarts=restarts, died_of=died_of, micro_batch_tokens=micro_batch_tokens
        )
        try:
            try:
                self._child = subprocess.Popen(
                    command,
                    env={**os.environ, VARIABLE: json.dumps(asdict(told))},
                    pass_fds=[pipe],
                    start_new_session=True,
                )
            finally:
                os.close(pipe)
            while self._early:
                self._child.send_signal(self._early.pop(0))
            return self._child.wait()
        finally:
            os.close(held)
            self._child = None

    def _hand_on(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._child is None:
            self._early.append(signum)
        else:
            self._child.send_signal(signum)


def cause_of_death(returncode: int) -> str | None:
    """What a process died of; None where it ended by itself, or was asked to end.

    Args:
        returncode: as `subprocess` has it.

    >>> cause_of_death(-9), cause_of_death(-99), cause_of_death(70)
    ('SIGKILL', 'signal 99', 'an error of its own')
    >>> cause_of_death(0), cause_of_death(4), cause_of_death(-15)
    (None, None, None)
    """
    if returncode == CRASHED:
        return "an error of its own"
    if returncode >= 0 or -returncode in STOPPING:
        return None
    try:
        return signal.Signals(-returncode).name
    except ValueError:  # one without a name
        return f"signal {-returncode}"


def exit_code(returncode: int) -> int:
    """As a shell counts it.

    >>> exit_code(4), exit_code(-15)
    (4, 143)
    """
    return 128 - returncode if returncode < 0 else returncode


def without_resume(arguments: Sequence[str]) -> list[str]:
    """Arguments of `train` but for `--resume`.

    >>> without_resume(["--resume", "job.yaml", "--resume=runs/one", "--", "--resume"])
    ['job.yaml', '--', '--resume']
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [a for a in arguments[:end] if a != "--resume" and not a.startswith("--resume=")]
    return [*options, *arguments[end:]]


def this_program() -> list[str]:
    """How to start this program once more.

    No module is taken from the present folder, where anything may lie, unless this package itself
    is there: then it may have been started from there without being installed.
    """
    from_here = Path.cwd() == Path(__file__).resolve().parents[2]
    return [sys.executable, *([] if from_here else ["-P"]), "-m", "qwen_local"]


def halved(folder: Path, budget: int | None) -> int | None:
    """Half of what the dead process computed at once, in tokens; None where nobody knows.

    Args:
        folder: of the run, whose events tell.
        budget: what the process was told, if anything: it may have died before its first event.
    """
    told = [] if budget is None else [budget]
    noted = [event["micro_batch_tokens"] for event in _events(folder) if _has_budget(event)]
    known = [*told, *noted[-1:]]
    return max(1, min(known) // 2) if known else None


def _has_budget(event: dict[str, Any]) -> bool:
    return isinstance(event.get("micro_batch_tokens"), int)


def _events(folder: Path) -> list[dict[str, Any]]:
    with suppress(OSError):
        return list(read_metrics(folder / METRICS))
    return []


def _written(folder: Path) -> list[tuple[int, int] | None]:
    """Changes whenever a process has begun the run in this folder, or moved it on."""
    stats: list[tuple[int, int] | None] = []
    for name in ("job.yaml", METRICS):
        try:
            found = (folder / name).stat()
            stats.append((found.st_mtime_ns, found.st_size))
        except OSError:
            stats.append(None)
    return stats


def _notice(folder: Path, deaths: Sequence[str], restarts: int, budget: int | None) -> str:
    """What is said of a restart, in a line."""
    at_most = "" if budget is None else f", with at most {budget:,} tokens computed at once"
    return (
        f"the training process died of {deaths[-1]}: it is begun again {_from(folder)}{at_most} "
        f"(restart {len(deaths)} of {restarts})"
    )


def _from(folder: Path) -> str:
    steps = steps_in(folder / CHECKPOINTS)
    return f"from step {steps[0]:,}" if steps else "from the beginning"


def _obituary(folder: Path, deaths: Sequence[str], *, stopping: bool) -> str:
    """What is said when the run is not begun again: how often it died, of what, and the mend."""
    times = "" if len(deaths) == 1 else f" {len(deaths)} times"
    when = " while it was being stopped" if stopping else ""
    steps = steps_in(folder / CHECKPOINTS)
    last = folder / CHECKPOINTS / step_name(steps[0]) if steps else None
    hints = []
    if "SIGKILL" in deaths:
        hints.append("SIGKILL is what a system sends that has no memory left")
    if (folder / "job.yaml").exists():
        hints.append(f"to go on: {resume_command(folder)}")
    said = f"the training process died{times}{when}, of {', '.join(deaths)}; " + (
        "there is no checkpoint" if last is None else f"the last checkpoint is {last}"
    )
    return f"{said}\n\nhint: {'; '.join(hints)}" if hints else said
