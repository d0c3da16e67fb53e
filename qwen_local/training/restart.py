"""Restarts of a training process that dies (`train.restarts`).

A process cannot catch some deaths: Metal aborts, the system kills what takes too much memory, and
no CUDA call works after an "illegal memory access". So the training runs in a child (`child.py`).
The parent imports no engine. It waits, forwards signals, and restarts the run from its newest
checkpoint with half the micro-batch budget.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Self

from qwen_local.backends.select import may_be_metal
from qwen_local.console.log import talk
from qwen_local.console.signals import STOPPING, handled
from qwen_local.errors import JobError, QwenLocalError
from qwen_local.job.schema import Draft
from qwen_local.runs.directory import run_folder
from qwen_local.runs.events import MemoryEvent, ResumeEvent, StartEvent
from qwen_local.runs.names import RunFiles
from qwen_local.runs.run import Run
from qwen_local.training.child import CRASHED, VARIABLE, Child
from qwen_local.training.resume import find_run, resume_command

log = logging.getLogger("qwen_local")

Command = Callable[[bool], Sequence[str]]
"""(True to resume from the newest checkpoint) -> command line of the process."""


RESTARTS_ON_METAL = 3
"""Automatic restarts where macOS ends a process whose work keeps the display waiting, and Metal one
that runs out of memory."""


class DiedError(QwenLocalError):
    """The training process died, and is not restarted."""


def restarts_of(draft: Draft, *, job: Path | None, backend: str, device: str) -> int:
    """Return the number of restarts that a job allows.

    Args:
        draft: the job.
        job: its file. One that can be read only once rules out automatic restarts.
        backend: as asked for. No engine is imported here: on a Mac `auto` is taken for MLX.
        device: as asked for.
    """
    if draft.job.train.restarts != "auto":
        return draft.job.train.restarts
    readable = job is None or job.is_file()
    return RESTARTS_ON_METAL if readable and may_be_metal(backend, device) else 0


def train_with_restarts(
    draft: Draft,
    restarts: int,
    arguments: Sequence[str],
    *,
    job: Path | None,
    resume: str | None,
    quiet: bool,
    debug: bool,
) -> int:
    """Run `qwen-local train` in a process that is restarted if it dies.

    Args:
        draft: the job.
        restarts: most restarts, at least one.
        arguments: of `qwen-local train`, as the user gave them.
        job: the job file among them.
        resume: see `resume.find_run`; None for a new run.
        quiet: print nothing on stderr.
        debug: as `qwen-local --debug`.

    Returns:
        Exit code of the last process.

    Raises:
        InputError: `resume` names no run, or the job cannot be read again.
        DiedError: it died once too often, or while it was being stopped.
    """
    if job is not None and not job.is_file():
        raise JobError.at(
            "train.restarts",
            f"{job} is not a file: it can be read only once, but each process reads the job",
            "write the job to a file, or set train.restarts to 0",
        )
    # Passed to every process, because each of them would choose another default output.
    folder = run_folder(draft.job) if resume is None else find_run(draft, resume).folder
    program = [*this_program(), *(["--debug"] if debug else [])]

    def command(resuming: bool) -> Sequence[str]:
        given = without_resume(arguments) if resuming else arguments
        resumed = [f"--resume={folder}"] if resuming else []
        return [*program, "train", f"--output={folder}", *resumed, *given]

    with talk(quiet=quiet):
        return run_with_restarts(folder, command, restarts=restarts)


def run_with_restarts(folder: Path, command: Command, *, restarts: int) -> int:
    """Run a process to its end, and again if it dies.

    Args:
        folder: of the run.
        command: the process.
        restarts: most restarts.

    Returns:
        Exit code of the last process.

    Raises:
        DiedError: it died once too often, or while it was being stopped.
    """
    at_start = _written(folder)
    budget: int | None = None
    deaths: list[str] = []
    with _Relay() as relay:
        while True:
            before = _written(folder)
            returncode = relay.run(
                command(before != at_start),
                restarts=len(deaths),
                died_of=deaths[-1] if deaths else None,
                micro_batch_tokens=budget,
            )
            died_of = cause_of_death(returncode)
            if died_of is None:
                return exit_code(returncode)
            deaths.append(died_of)
            if _written(folder) != before and Run(folder).finished is not None:
                log.info("the training process died (%s) after the run was finished", died_of)
                return 0
            if relay.asked or len(deaths) > restarts:
                raise DiedError(_last_message(Run(folder), deaths, stopping=relay.asked))
            budget = halved(folder, budget)
            log.info("%s", _restart_message(Run(folder), deaths, restarts, budget))


class _Relay:
    """Starts one process after the other, and forwards signals to the one that runs.

    Each has a session of its own, so that Ctrl+C in the terminal reaches it once, from here.
    """

    def __init__(self) -> None:
        self.asked = False
        """True if a signal came."""
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._handled = handled(STOPPING, self._forward)

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
        """Run a process to its end; the keywords are fields of `Child`.

        Returns:
            Its exit code, or minus the signal that killed it.
        """
        pipe, held = os.pipe()
        child = Child(
            pipe=pipe, restarts=restarts, died_of=died_of, micro_batch_tokens=micro_batch_tokens
        )
        try:
            try:
                self._child = subprocess.Popen(
                    command,
                    env={**os.environ, VARIABLE: json.dumps(asdict(child))},
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

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._child is None:
            self._early.append(signum)
        else:
            self._child.send_signal(signum)


def cause_of_death(returncode: int) -> str | None:
    """Name what killed a process; None if it exited by itself, or was asked to end.

    Args:
        returncode: as in `subprocess`.

    >>> cause_of_death(-9), cause_of_death(-99), cause_of_death(70)
    ('SIGKILL', 'signal 99', 'internal error')
    >>> cause_of_death(0), cause_of_death(4), cause_of_death(-15)
    (None, None, None)
    """
    if returncode == CRASHED:
        return "internal error"
    if returncode >= 0 or -returncode in STOPPING:
        return None
    try:
        return signal.Signals(-returncode).name
    except ValueError:  # a signal without a name
        return f"signal {-returncode}"


def exit_code(returncode: int) -> int:
    """Convert to the exit code that a shell reports.

    >>> exit_code(4), exit_code(-15)
    (4, 143)
    """
    return 128 - returncode if returncode < 0 else returncode


def without_resume(arguments: Sequence[str]) -> list[str]:
    """Arguments of `train` without `--resume`.

    >>> without_resume(["--resume", "job.yaml", "--resume=runs/one", "--", "--resume"])
    ['job.yaml', '--', '--resume']
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [a for a in arguments[:end] if a != "--resume" and not a.startswith("--resume=")]
    return [*options, *arguments[end:]]


def this_program() -> list[str]:
    """Command that starts this program.

    Modules are not imported from the working folder, which may hold anything, unless this package
    itself is there: then it may run without being installed.
    """
    from_here = Path.cwd() == Path(__file__).resolve().parents[2]
    return [sys.executable, *([] if from_here else ["-P"]), "-m", "qwen_local"]


def halved(folder: Path, budget: int | None) -> int | None:
    """Half of the micro-batch budget of the process that died, in tokens; None if unknown.

    Args:
        folder: of the run, whose events have the budget.
        budget: passed to the process, which may have died before its first event.
    """
    recorded = [
        event.micro_batch_tokens
        for event in Run(folder).events
        if isinstance(event, StartEvent | ResumeEvent | MemoryEvent)
    ]
    known = [*([] if budget is None else [budget]), *recorded[-1:]]
    return max(1, min(known) // 2) if known else None


def _written(folder: Path) -> list[tuple[int, int] | None]:
    """State of the files that change when a process starts a run, or makes progress with it."""
    files = RunFiles(folder)
    stats: list[tuple[int, int] | None] = []
    for file in (files.job, files.metrics):
        try:
            found = file.stat()
            stats.append((found.st_mtime_ns, found.st_size))
        except OSError:
            stats.append(None)
    return stats


def _restart_message(run: Run, deaths: Sequence[str], restarts: int, budget: int | None) -> str:
    steps = run.checkpoints
    place = f"step {steps[0]:,}" if steps else "the start"
    limit = "" if budget is None else f" with micro-batches of at most {budget:,} tokens"
    return (
        f"the training process died ({deaths[-1]}): restarting from {place}{limit} "
        f"(restart {len(deaths)} of {restarts})"
    )


def _last_message(run: Run, deaths: Sequence[str], *, stopping: bool) -> str:
    """Error message: number and causes of deaths, the last checkpoint, and the fix."""
    times = "" if len(deaths) == 1 else f" {len(deaths)} times"
    when = " while it was being stopped" if stopping else ""
    steps = run.checkpoints
    hints = []
    if "SIGKILL" in deaths:
        hints.append("a system that is out of memory sends SIGKILL")
    if "SIGABRT" in deaths and sys.platform == "darwin":
        hints.append(
            "macOS ends work that delays the display: turn it off (`pmset displaysleepnow`), or "
            "lower train.micro_batch_tokens"
        )
    if run.files.job.exists():
        hints.append(f"to continue: {resume_command(run.folder)}")
    message = f"the training process died{times}{when} ({', '.join(deaths)}); " + (
        f"the last checkpoint is {run.checkpoint(steps[0])}" if steps else "there is no checkpoint"
    )
    return f"{message}\n\nhint: {'; '.join(hints)}" if hints else message
