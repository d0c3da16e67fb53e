"""How a command ends that is stopped from outside, or whose terminal closes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGHUP, SIGTERM
from typing import Any

import click
import pytest

from qwen_local.cli.train import train
from qwen_local.training.child import VARIABLE

pytestmark = pytest.mark.slow

Cli = Callable[..., Any]
Process = subprocess.Popen[str]

COMMAND = """
import fcntl, logging, os, sys, termios, time
from pathlib import Path
from qwen_local.cli import cli, main
from qwen_local.console.log import LogFile, logging_to, talk

log = logging.getLogger("qwen_local")

def ready():
    Path("ready").touch()

def wait(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end: time.sleep(0.01)

@cli.command()
def act():
"""
RUN = "\nsys.argv = ['qwen-local', 'act']\nmain()\n"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """(what a command does, **Popen) -> the process of that command, once it has called ready()."""
    started: list[Process] = []

    def run(code: str, **how: Any) -> Process:
        script = COMMAND + textwrap.indent(textwrap.dedent(code), "    ") + RUN
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=tmp_path, text=True, **(pipes | how)
        )
        started.append(process)
        while not (tmp_path / "ready").exists():
            assert process.poll() is None, process.communicate()
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("signum", "code", "said"),
    [
        (SIGTERM, 143, "stopped by SIGTERM"),
        (SIGHUP, 129, "stopped by SIGHUP"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_stopped_fuse_leaves_nothing_half_done(
    signum: int, code: int, said: str, start: Callable[..., Process], tmp_path: Path
) -> None:
    process = start("""
        from qwen_local.export.opening import new_folder
        with new_folder(Path("out")) as new:
            (new / "model.safetensors").touch()
            ready()
            wait(60)
    """)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (code, "", said)
    assert os.listdir(tmp_path) == ["ready"]  # noqa: PTH208


def test_debug_shows_where_it_was_stopped(start: Callable[..., Process]) -> None:
    process = start("sys.argv[1:] = ['--debug']\nready()\nwait(60)")
    process.send_signal(SIGTERM)
    _, err = process.communicate(timeout=60)
    assert err.strip().startswith("Traceback (most recent call last):")
    assert "\nqwen_local.console.signals.Stopped: stopped by SIGTERM\n" in err


# --- a child that is restarted ---


def told_as_a_child(pipe: int) -> dict[str, Any]:
    """How to start a process so that it is told to be one."""
    told = {"pipe": pipe, "restarts": 0, "died_of": None, "micro_batch_tokens": None}
    return {"env": {**os.environ, VARIABLE: json.dumps(told)}, "pass_fds": [pipe]}


def test_a_child_ends_with_its_parent(start: Callable[..., Process]) -> None:
    pipe, held = os.pipe()
    process = start("ready()\ntime.sleep(60)", **told_as_a_child(pipe))
    os.close(pipe)
    os.close(held)  # as the system does it when the parent dies
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (143, "stopped by SIGTERM")


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        ("RuntimeError('CUDA error')", 70, "RuntimeError: CUDA error"),
        ("MemoryError()", 70, "MemoryError"),
        ("OSError(28, 'full', 'x')", 1, "full: x"),
    ],
)
def test_an_error_that_is_no_message_of_ours_has_an_exit_code_of_its_own(
    error: str, code: int, last: str, start: Callable[..., Process]
) -> None:
    pipe, held = os.pipe()
    process = start(f"ready()\nraise {error}", **told_as_a_child(pipe))
    _, err = process.communicate(timeout=30)
    os.close(pipe)
    os.close(held)
    assert (process.returncode, err.splitlines()[-1]) == (code, last)
    assert err.startswith("Traceback (most recent call last):\n") is (code == 70)


# --- a terminal that closes ---

TALKATIVE = """
    import click
    from qwen_local.training.progress import Progress
    fcntl.ioctl(2, termios.TIOCSCTTY, 0)  # now it is ours, and closes with a SIGHUP
    try:
        file = logging_to(LogFile(Path("run.log")))
        with talk(quiet=False), file, Progress(20, quiet=False) as bar:
            assert sys.stderr.isatty()
            for step in range(1, 21):
                if step == 5:
                    ready()
                    while not Path("closed").exists(): time.sleep(0.01)
                log.info("step %d", step)
                bar.stepped(step, 1.0, 1e-4, 100.0)
                click.echo("well", err=True)
                print("well", file=sys.stderr, flush=True)
                wait(0.05)
    finally:
        Path("finally").touch()
    print("the result")
"""


@pytest.mark.parametrize(
    ("ignored", "code", "out", "steps"), [(False, 129, "", 19), (True, 0, "the result\n", 20)]
)
def test_a_terminal_that_closes_ends_a_command_by_its_signal_and_never_by_what_is_said(
    ignored: bool, code: int, out: str, steps: int, start: Callable[..., Process], tmp_path: Path
) -> None:
    head = "import signal\n" + ("signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" * ignored)
    ours, theirs = os.openpty()
    process = start(head + textwrap.dedent(TALKATIVE), stderr=theirs, start_new_session=True)
    os.close(theirs)
    os.close(ours)
    (tmp_path / "closed").touch()
    assert (process.communicate(timeout=60)[0], process.returncode) == (out, code)
    assert (tmp_path / "finally").exists()
    logged = (tmp_path / "run.log").read_text().splitlines()
    assert 4 <= len(logged) <= steps
    assert ignored is (len(logged) == 20)


def test_a_stderr_closed_from_the_start_is_none(tmp_path: Path) -> None:
    code = (
        COMMAND + "    print('said', file=sys.stderr)\n    print(os.open('x', os.O_CREAT))\n" + RUN
    )
    command = ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_log_on_a_full_disk_is_lost_without_a_word(start: Callable[..., Process]) -> None:
    process = start("""
        with logging_to(LogFile(Path("/dev/full"))):
            log.info("said")
            ready()
        print("the result")
    """)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "the result\n", "")


# --- --resume ---


@pytest.mark.parametrize(
    ("arguments", "resume", "job"),
    [
        ((), None, None),
        (("job.yaml",), None, "job.yaml"),
        (("--resume", "job.yaml"), "", "job.yaml"),
        (("job.yaml", "--resume"), "", "job.yaml"),
        (("--resume=runs/one", "job.yaml"), "runs/one", "job.yaml"),
        (("--resume=", "job.yaml"), "", "job.yaml"),
        (("--resume", "--output", "x", "--resume=2"), "2", None),
        (("--", "--resume"), None, "--resume"),
        (("--resume", "--", "job.yaml"), "", "job.yaml"),
    ],
)
def test_resume_takes_a_value_only_behind_an_equals_sign(
    arguments: tuple[str, ...],
    resume: str | None,
    job: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("job.yaml", "--resume"):
        (tmp_path / name).touch()
    with train.make_context("train", list(arguments)) as context:
        found = context.params
    assert (found["resume"], found["job"] and str(found["job"])) == (resume, job)


def test_help_says_how_to_resume() -> None:
    said = train.get_help(click.Context(train))
    (line,) = (line for line in said.splitlines() if "--resume" in line)
    assert line.split("  ")[1:2] == ["--resume[=CHECKPOINT]"]


@pytest.mark.parametrize(
    ("arguments", "resume"),
    [
        ((), None),
        (("--resume",), "runs/one"),
        (("job.yaml", "--resume"), "runs/one"),
        (("--resume=run",), "run"),
    ],
)
def test_train_is_told_what_to_resume(
    arguments: tuple[str, ...], resume: str | None, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def told_only(draft: object, **how: Any) -> None:
        told.append(how["resume"])
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen_local.training.run.train", told_only)
    for job in (Path("job.yaml"), Path("run/job.yaml"), Path("runs/one/job.yaml")):
        job.parent.mkdir(parents=True, exist_ok=True)
        job.write_text("train: {epochs: 7}\n", encoding="utf-8")
    assert cli("train", *arguments).code == 130
    assert told == [resume]


def test_a_dry_run_of_a_resumed_run_plans_it(cli: Cli) -> None:
    said = cli("train", "--resume=run", "--dry-run")
    assert (said.code, said.out) == (2, "")
    Path("run").mkdir()
    Path("run/job.yaml").write_text("train: {epochs: 7}\n", encoding="utf-8")
    said = cli("train", "--resume=run", "--dry-run", "--json")
    assert (said.code, json.loads(said.out)["job"]["train"]["epochs"]) == (0, 7)
