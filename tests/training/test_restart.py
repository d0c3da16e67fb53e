"""A process that dies is restarted; one that ends is not; and none outlives its parent.

The processes here are scripts that die as they are told; the last tests train.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM
from typing import Any

import pytest

from qwen_local.errors import JobError
from qwen_local.job.schema import read_job
from qwen_local.runs.events import (
    EndEvent,
    ResumeEvent,
    StartEvent,
    TrainEvent,
    read_events,
)
from qwen_local.runs.run import Run
from qwen_local.training.child import VARIABLE, this_child
from qwen_local.training.restart import (
    DiedError,
    _last_message,
    halved,
    restarts_of,
    run_with_restarts,
    train_with_restarts,
)

pytestmark = pytest.mark.slow

ENGINE = {"backend": "cuda", "device": "cpu", "dtype": "float32", "micro_batch_tokens": 1}
DONE = {
    **{"run": "run", "adapter": "run/adapter", "backend": "cuda", "device": "cpu", "steps": 1},
    **{"epochs": 1.0, "train_loss": 1.0, "first_eval_loss": None, "eval_loss": None},
    **{"best_step": 1, "best_eval_loss": None, "trainable_parameters": 1, "total_parameters": 2},
    **{"supervised_tokens": 1, "tokens_per_second": 1.0, "peak_memory_bytes": 1, "restarts": 0},
    "stopped_because": "all steps done",
}
WHOLE: dict[str, dict[str, Any]] = {
    "start": {**ENGINE, "steps": 1, "rows": 1, "trainable_parameters": 1},
    "resume": {**ENGINE, "steps": 1},
    "train": {"loss": 1.0},
    "end": DONE,
}
"""Fields of events that a test does not care about."""
CHILD = (
    f"WHOLE = {WHOLE!r}"
    + """
import json, os, signal, sys, time
from pathlib import Path
from qwen_local.training.child import end_with_parent, this_child

told, goes_on = this_child(), sys.argv[1] == "True"
with open("children", "a") as file:
    print(json.dumps([goes_on, told.restarts, told.died_of, told.micro_batch_tokens]), file=file)
run = Path("run")

def begin():
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "job.yaml").touch()

def event(**fields):
    begin()
    with (run / "metrics.jsonl").open("a") as file:
        print(json.dumps({**WHOLE.get(fields["event"], {}), **fields}), file=file)

def checkpoint(step):
    (run / f"checkpoints/step-{step:06d}").mkdir()

def die(signum):
    signal.signal(signum, signal.SIG_DFL) if signum != signal.SIGKILL else None
    os.kill(os.getpid(), signum)
    time.sleep(60)

def wait(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end: time.sleep(0.01)

"""
)

Life = Callable[..., int]


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Life:
    """(what each process does, restarts=3) -> the exit code, in a folder with the run in `run`."""
    monkeypatch.chdir(tmp_path)

    def run(code: str, *, restarts: int = 3) -> int:
        return run_with_restarts(Path("run"), command_of(code), restarts=restarts)

    return run


def command_of(code: str) -> Callable[[bool], Sequence[str]]:
    script = CHILD + textwrap.dedent(code)
    return lambda goes_on: [sys.executable, "-c", script, str(goes_on)]


def children() -> list[list[Any]]:
    """(whether it went on, restarts so far, what ended the last, budget) of each process."""
    return [json.loads(line) for line in Path("children").read_text().splitlines()]


# --- what ends, and what dies ---


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 129, 130, 143])
def test_a_process_that_ends_by_itself_is_not_restarted(code: int, live: Life) -> None:
    assert live(f"sys.exit({code})") == code
    assert children() == [[False, 0, None, None]]


@pytest.mark.parametrize("signum", [SIGINT, SIGTERM, SIGHUP], ids=lambda s: s.name)
def test_a_process_that_was_asked_to_end_before_it_could_listen_is_not_either(
    signum: signal.Signals, live: Life
) -> None:
    assert live(f"begin(); die({int(signum)})") == 128 + signum
    assert len(children()) == 1


@pytest.mark.parametrize(
    ("death", "cause"),
    [
        ("die(signal.SIGKILL)", "SIGKILL"),
        ("os.abort()", "SIGABRT"),
        ("die(signal.SIGSEGV)", "SIGSEGV"),
        ("sys.exit(70)", "internal error"),
    ],
)
def test_a_process_that_dies_is_restarted_from_its_newest_checkpoint(
    death: str, cause: str, live: Life, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert live(f"if told.restarts: sys.exit(0)\nbegin(); checkpoint(40)\n{death}") == 0
    assert children() == [[False, 0, None, None], [True, 1, cause, None]]
    assert caplog.messages == [
        f"the training process died ({cause}): restarting from step 40 (restart 1 of 3)"
    ]


def test_what_died_before_it_wrote_anything_is_started_as_the_first_time(
    live: Life, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert live("if told.restarts == 0: die(signal.SIGKILL)") == 0
    assert children() == [[False, 0, None, None], [False, 1, "SIGKILL", None]]
    assert caplog.messages == [
        "the training process died (SIGKILL): restarting from the start (restart 1 of 3)"
    ]


def test_what_died_before_it_moved_an_earlier_run_on_is_started_as_it_was_asked_for(
    live: Life,
) -> None:
    Path("run").mkdir()
    Path("run/job.yaml").touch()
    Path("run/metrics.jsonl").write_text(json.dumps({"event": "end", **DONE}) + "\n")
    assert live("if told.restarts == 0: die(signal.SIGKILL)") == 0
    assert [goes_on for goes_on, *_ in children()] == [False, False]


def test_each_death_halves_the_budget_that_the_process_had(
    live: Life, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    code = """
        if told.restarts == 0:
            event(event="start", micro_batch_tokens=4096)
            event(event="memory", step=1, micro_batch_tokens=2048)
            event(event="train", step=1)
        if told.restarts == 2:
            event(event="resume", step=0, micro_batch_tokens=told.micro_batch_tokens)
        if told.restarts < 3:
            die(signal.SIGKILL)
    """
    assert live(code) == 0
    assert [budget for *_, budget in children()] == [None, 1024, 512, 256]
    assert caplog.messages[1] == (
        "the training process died (SIGKILL): restarting from the start with micro-batches of at "
        "most 512 tokens (restart 2 of 3)"
    )


@pytest.mark.parametrize(
    ("events", "told", "half"),
    [
        (None, None, None),
        (None, 300, 150),
        (None, 1, 1),
        ([{"event": "train", "step": 1}], None, None),
        ([{"event": "start", "micro_batch_tokens": 1}], None, 1),
        ([{"event": "start", "micro_batch_tokens": 2048}], None, 1024),
        ([{"event": "start", "micro_batch_tokens": 2048}], 512, 256),
        ([{"event": "start", "micro_batch_tokens": 512}], 2048, 256),
    ],
)
def test_the_budget_is_half_of_the_smallest_that_is_known_and_at_least_one(
    events: list[dict[str, Any]] | None, told: int | None, half: int | None, tmp_path: Path
) -> None:
    if events is not None:
        whole = [{**WHOLE[event["event"]], **event} for event in events]
        lines = "".join(f"{json.dumps(event)}\n" for event in whole)
        (tmp_path / "metrics.jsonl").write_text(f'{lines}{{"event": "memory", "micro_ba')
    assert halved(tmp_path, told) == half


def test_a_process_that_dies_after_all_was_done_has_done_all(
    live: Life, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert live("event(event='end', stopped_because='all steps done'); os.abort()") == 0
    assert len(children()) == 1
    assert caplog.messages == ["the training process died (SIGABRT) after the run was finished"]


def test_restarts_that_are_spent_are_told_with_the_last_checkpoint_and_how_to_go_on(
    live: Life,
) -> None:
    with pytest.raises(DiedError) as died:
        live(
            "begin()\nif told.restarts == 2: checkpoint(20); checkpoint(30); sys.exit(70)\n"
            "die(signal.SIGKILL)",
            restarts=2,
        )
    assert len(children()) == 3
    assert died.value.exit_code == 1
    assert str(died.value) == (
        "the training process died 3 times (SIGKILL, SIGKILL, internal error); the last "
        "checkpoint is run/checkpoints/step-000030\n\n"
        "hint: a system that is out of memory sends SIGKILL; to continue: qwen-local train "
        "--resume=run"
    )


def test_a_run_that_never_began_has_no_checkpoint_to_tell_of(live: Life) -> None:
    with pytest.raises(DiedError) as died:
        live("os.abort()", restarts=1)
    assert str(died.value) == (
        "the training process died 2 times (SIGABRT, SIGABRT); there is no checkpoint"
    )


def test_stdout_is_the_childs_and_nothing_is_added(
    live: Life, capfd: pytest.CaptureFixture[str]
) -> None:
    assert live("print('{}')") == 0
    assert capfd.readouterr() == ("{}\n", "")


def test_only_the_child_is_told(live: Life) -> None:
    assert live("") == 0
    assert this_child() is None
    assert VARIABLE not in os.environ


def test_no_process_leaves_a_file_open(live: Life) -> None:
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    assert live("if told.restarts < 3: die(signal.SIGKILL)") == 0
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


def test_the_handlers_are_put_back(live: Life) -> None:
    before = [signal.getsignal(signum) for signum in (SIGINT, SIGTERM, SIGHUP)]
    assert live("") == 0
    assert [signal.getsignal(signum) for signum in (SIGINT, SIGTERM, SIGHUP)] == before


# --- a parent that is stopped, or dies ---

PARENT = """
import fcntl, sys, termios
from pathlib import Path
from qwen_local.errors import QwenLocalError
from qwen_local.training.restart import run_with_restarts
if sys.stdin.isatty():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
try:
    sys.exit(run_with_restarts(Path("run"), lambda goes_on: sys.argv[1:], restarts=3))
except QwenLocalError as error:
    print(error)
    sys.exit(error.exit_code)
"""
COUNTING = """
came = []
for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(signum, lambda signum, frame: came.append(signal.Signals(signum).name))
Path("ready").write_text(str(os.getpid()))
while not came: time.sleep(0.01)
wait(1.0)
print(*came, flush=True)
sys.exit(77)
"""
COUNTING_TO_TWO = COUNTING.replace(
    "while not came: time.sleep(0.01)",
    "while not came: time.sleep(0.01)\n"
    "Path('first').write_text(came[0])\n"
    "while len(came) < 2: time.sleep(0.01)",
)
Parents = Callable[..., tuple["subprocess.Popen[str]", int]]


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parents]:
    """(what the child does, **Popen) -> its parent, a process too, and the child's id."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str, **how: Any) -> tuple[subprocess.Popen[str], int]:
        child = [sys.executable, "-c", CHILD + textwrap.dedent(code), "False"]
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT, *child],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            **how,
        )
        started.append(process)
        return process, int(appearing(tmp_path / "ready"))

    yield run
    for process in started:
        process.kill()
        process.communicate()


def appearing(path: Path) -> str:
    """The content of a file, once it has one."""
    for _ in range(12_000):
        if path.exists() and (content := path.read_text()):
            return content
        time.sleep(0.01)
    raise AssertionError(f"{path} did not appear")


def gone(process: int) -> bool:
    """Whether a process that is nobody's child here ends within some seconds."""
    for _ in range(12_000):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("signum", [SIGINT, SIGTERM, SIGHUP], ids=lambda s: s.name)
def test_a_signal_is_handed_on_once(signum: signal.Signals, parent: Parents) -> None:
    process, _ = parent(COUNTING)
    process.send_signal(signum)
    assert process.communicate(timeout=60)[0] == f"{signum.name}\n"
    assert process.returncode == 77


def test_ctrl_c_in_the_terminal_comes_to_the_child_once(parent: Parents) -> None:
    ours, theirs = os.openpty()
    process, _ = parent(COUNTING, stdin=theirs, start_new_session=True)
    os.close(theirs)
    os.write(ours, b"\x03")
    assert process.communicate(timeout=60)[0] == "SIGINT\n"
    os.close(ours)


def test_two_signals_are_two(parent: Parents, tmp_path: Path) -> None:
    process, _ = parent(COUNTING_TO_TWO)
    process.send_signal(SIGINT)
    assert appearing(tmp_path / "first") == "SIGINT"
    process.send_signal(SIGTERM)
    assert process.communicate(timeout=60)[0] == "SIGINT SIGTERM\n"


def test_what_dies_while_it_is_being_stopped_is_not_restarted(
    parent: Parents, tmp_path: Path
) -> None:
    process, _ = parent("""
        signal.signal(signal.SIGTERM, lambda *_: os.abort())
        begin()
        Path("ready").write_text(str(os.getpid()))
        wait(60)
    """)
    process.send_signal(SIGTERM)
    assert process.communicate(timeout=60)[0] == (
        "the training process died while it was being stopped (SIGABRT); there is no checkpoint"
        "\n\nhint: to continue: qwen-local train --resume=run\n"
    )
    assert process.returncode == 1
    assert len((tmp_path / "children").read_text().splitlines()) == 1


def test_a_child_whose_parent_is_killed_saves_and_ends(parent: Parents, tmp_path: Path) -> None:
    process, child = parent("""
        end_with_parent(told.pipe)
        def stop(*_):
            Path("saved").write_text("yes")
            sys.exit(143)
        signal.signal(signal.SIGTERM, stop)
        Path("ready").write_text(str(os.getpid()))
        time.sleep(60)
    """)
    process.send_signal(SIGKILL)
    assert gone(child)
    assert appearing(tmp_path / "saved") == "yes"


def test_a_child_that_does_not_end_by_itself_is_ended(parent: Parents) -> None:
    process, child = parent("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_with_parent(told.pipe, grace=0.3)
        Path("ready").write_text(str(os.getpid()))
        wait(60)
    """)
    process.send_signal(SIGKILL)
    assert gone(child)


def test_a_child_lives_as_long_as_its_parent(parent: Parents) -> None:
    process, _ = parent("""
        end_with_parent(told.pipe, grace=0.0)
        Path("ready").write_text(str(os.getpid()))
        wait(1.0)
        print("lived")
    """)
    assert process.communicate(timeout=60)[0] == "lived\n"


# --- the command ---


def test_the_parent_imports_no_engine() -> None:
    code = (
        "import sys\n"
        "import qwen_local.cli, qwen_local.training.restart\n"
        "heavy = {'torch', 'mlx', 'transformers', 'datasets', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("system", "sets", "given", "expected"),
    [
        ("Darwin", [], {}, 3),
        ("Darwin", [], {"backend": "mlx", "device": "gpu"}, 3),
        ("Darwin", [], {"backend": "cuda"}, 0),
        ("Darwin", [], {"device": "cpu"}, 0),
        ("Darwin", [], {"job": Path("/dev/fd/0")}, 0),  # read once, and there is a way without
        ("Darwin", ["train.restarts=0"], {}, 0),
        ("Darwin", ["train.restarts=9"], {"device": "cpu"}, 9),
        ("Linux", [], {}, 0),
        ("Linux", [], {"backend": "mlx"}, 0),
        ("Linux", ["train.restarts=1"], {}, 1),
    ],
)
def test_a_run_on_metal_is_restarted_automatically(
    system: str,
    sets: list[str],
    given: dict[str, Any],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS ends a process whose work keeps the display waiting: MLX issue 3267."""
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    asked = {"job": None, "backend": "auto", "device": "auto", **given}
    assert restarts_of(read_job(None, sets=sets), **asked) == expected


def test_a_job_that_can_be_read_only_once_is_refused() -> None:
    read, write = os.pipe()
    os.close(write)
    draft = read_job(None, sets=["train.restarts=1"])
    with pytest.raises(JobError) as refused:
        train_with_restarts(
            draft, 1, [], job=Path(f"/dev/fd/{read}"), resume=None, quiet=True, debug=False
        )
    os.close(read)
    assert str(refused.value) == (
        f"train.restarts: /dev/fd/{read} is not a file: it can be read only once, but each process "
        "reads the job\n\nhint: write the job to a file, or set train.restarts to 0"
    )


@pytest.mark.parametrize(
    ("output", "resume", "arguments", "first", "again"),
    [
        (
            "run",
            None,
            ["job.yaml", "--output", "run"],
            ["--output=run", "job.yaml", "--output", "run"],
            ["--output=run", "--resume=run", "job.yaml", "--output", "run"],
        ),
        (
            None,
            None,
            ["--json"],
            ["--output=runs/tiny-TODAY-1", "--json"],
            ["--output=runs/tiny-TODAY-1", "--resume=runs/tiny-TODAY-1", "--json"],
        ),
        (
            None,
            "old/checkpoints/step-000002",
            ["--resume=old/checkpoints/step-000002", "--", "job.yaml"],
            ["--output=old", "--resume=old/checkpoints/step-000002", "--", "job.yaml"],
            ["--output=old", "--resume=old", "--", "job.yaml"],
        ),
    ],
    ids=["an output", "none", "a checkpoint"],
)
def test_each_process_gets_the_same_arguments_and_the_folder_of_the_run(
    output: str | None,
    resume: str | None,
    arguments: list[str],
    first: list[str],
    again: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old/checkpoints/step-000002").mkdir(parents=True)
    Path("old/job.yaml").touch()
    commands = []

    def only_noted(folder: Path, command: Callable[[bool], Sequence[str]], *, restarts: int) -> int:
        commands.extend([command(False), command(True)])
        return restarts

    monkeypatch.setattr("qwen_local.training.restart.run_with_restarts", only_noted)
    draft = read_job(None, flags={"output": output})
    code = train_with_restarts(
        draft, 7, arguments, job=None, resume=resume, quiet=True, debug=resume is not None
    )
    debug = ["--debug"] if resume is not None else []
    program = [sys.executable, "-P", "-m", "qwen_local", *debug, "train"]
    today = f"{datetime.date.today():%Y%m%d}"
    assert code == 7
    assert commands == [
        [*program, *(a.replace("TODAY", today) for a in expected)] for expected in (first, again)
    ]


# --- training ---

TRAIN = ("train", "--device", "cpu", "--backend", "cuda", "--steps", "8", "--output", "run")
SHORT = ("--set", "data.limit=40", "--set", "train.save_every=3", "--set", "train.restarts=2")
AT_TERMINAL = """
import fcntl, sys, termios
from qwen_local.cli import main
fcntl.ioctl(2, termios.TIOCSCTTY, 0)  # now it is ours, and closes with a SIGHUP
main()
"""


def training(folder: Path, *arguments: str, **how: Any) -> subprocess.Popen[str]:
    """`qwen-local train` in a folder where a file lies that a careless start would import.

    With a terminal for its stderr it is the one that this terminal belongs to.
    """
    (folder / "json.py").write_text("raise SystemExit(99)")
    program = ["-c", AT_TERMINAL] if "stderr" in how else ["-m", "qwen_local"]
    return subprocess.Popen(
        [sys.executable, "-P", *program, *TRAIN, *SHORT, *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        **({"stderr": subprocess.PIPE} | how),
    )


def after_step(run: Path, step: int) -> int:
    """The id of the process that trains, once it has done this step."""
    for _ in range(30_000):
        if (run / "metrics.jsonl").exists():
            events = list(read_events(run / "metrics.jsonl", TrainEvent))
            if events and events[-1].step >= step:
                return int(json.loads((run / ".lock").read_text())["pid"])
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")


def stopped_because(run: Path) -> str:
    """Why a run ended, which has a checkpoint of its end."""
    (end,) = read_events(run / "metrics.jsonl", EndEvent)
    assert (run / f"checkpoints/step-{end.steps:06d}/COMPLETE.json").exists()
    return end.stopped_because


def test_a_training_whose_process_is_killed_comes_to_its_end_with_every_step_once(
    tmp_path: Path,
) -> None:
    process = training(tmp_path, "--json")
    child = after_step(tmp_path / "run", 4)
    assert child != process.pid
    os.kill(child, SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert (found["restarts"], found["steps"]) == (1, 8)
    events = list(read_events(tmp_path / "run/metrics.jsonl"))
    assert [e.step for e in events if isinstance(e, TrainEvent)] == list(range(1, 9))
    (start,) = (event for event in events if isinstance(event, StartEvent))
    (resume,) = (event for event in events if isinstance(event, ResumeEvent))
    budget = start.micro_batch_tokens // 2
    assert (resume.died_of, resume.micro_batch_tokens) == ("SIGKILL", budget)
    (notice,) = (line for line in err.splitlines() if "SIGKILL" in line)
    assert notice == (
        f"the training process died (SIGKILL): restarting from step {resume.step} with "
        f"micro-batches of at most {budget:,} tokens (restart 1 of 2)"
    )


def test_a_restarted_training_that_is_stopped_has_saved_and_says_how_to_go_on(
    tmp_path: Path,
) -> None:
    process = training(tmp_path)
    after_step(tmp_path / "run", 2)
    process.send_signal(SIGTERM)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (143, ""), err
    assert stopped_because(tmp_path / "run") == "SIGTERM"
    *_, how, empty, last = err.splitlines()
    assert (how, empty) == ("to continue: qwen-local train --resume=run", "")
    assert last == "stopped by SIGTERM"


def test_a_restarted_training_whose_terminal_closes_has_saved(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    process = training(tmp_path, stderr=theirs, start_new_session=True)
    os.close(theirs)
    after_step(tmp_path / "run", 2)
    os.close(ours)
    out, _ = process.communicate(timeout=300)
    assert (process.returncode, out) == (129, "")
    assert stopped_because(tmp_path / "run") == "SIGHUP"
    assert (
        (tmp_path / "run/run.log")
        .read_text()
        .endswith("to continue: qwen-local train --resume=run\n")
    )


@pytest.mark.parametrize(("system", "explained"), [("darwin", True), ("linux", False)])
def test_an_abort_on_a_mac_is_explained(
    system: str, explained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    message = _last_message(Run(tmp_path), ["SIGABRT"], stopping=False)
    assert ("hint: macOS ends work that delays the display" in message) is explained
