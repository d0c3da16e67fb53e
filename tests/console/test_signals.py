"""What a signal does to a command, with real processes and real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from signal import SIGHUP, SIGINT, SIGTERM

import pytest

from qwen_local.console.signals import STOPPING, Stopped, Stops, ends_by_signal

Process = subprocess.Popen[str]
Start = Callable[..., Process]
Opened = Callable[[], AbstractContextManager[object]]

HEAD = """
import os, signal, sys, time
from qwen_local.console.signals import Stopped, Stops, ends_by_signal
def say(*words): print(*words, flush=True)
def wait(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end: time.sleep(0.01)

def held():  # until the parent closes our stdin, which `ended` does
    sys.stdin.readline()
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """(code, ignored=None) -> a process that runs it, and that has said `ready`."""
    started: list[Process] = []

    def run(code: str, *, ignored: str | None = None) -> Process:
        command = [sys.executable, "-c", HEAD + textwrap.dedent(code)]
        if ignored is not None:
            command = ["sh", "-c", f'trap "" {ignored}; exec "$0" "$@"', *command]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        hear(process, "ready")
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def hear(process: Process, line: str) -> None:
    assert process.stdout is not None
    said = process.stdout.readline()
    if said != f"{line}\n":
        raise AssertionError(f"{said!r}, {process.communicate(timeout=60)}")


def ended(process: Process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# --- a command ---

CLEANING = """
    try:
        with ends_by_signal():
            try:
                say("ready")
                wait(60)
            finally:
                say("cleaning")
                held()
                say("cleaned")
    except Stopped as stopped:
        say(stopped)
        sys.exit(stopped.exit_code)
"""


@pytest.mark.parametrize(
    ("signum", "code", "name"), [(SIGTERM, 143, "SIGTERM"), (SIGHUP, 129, "SIGHUP")]
)
def test_a_signal_ends_a_command_after_its_cleanup(
    signum: int, code: int, name: str, start: Start
) -> None:
    process = start(CLEANING)
    process.send_signal(signum)
    assert ended(process) == (code, f"cleaning\ncleaned\nstopped by {name}\n", "")


@pytest.mark.parametrize("second", [SIGTERM, SIGHUP])
def test_further_signals_do_not_interrupt_the_cleanup(second: int, start: Start) -> None:
    process = start(CLEANING)
    process.send_signal(SIGTERM)
    hear(process, "cleaning")
    process.send_signal(second)
    assert ended(process) == (143, "cleaned\nstopped by SIGTERM\n", "")


def test_a_termination_does_not_interrupt_the_cleanup_after_ctrl_c(start: Start) -> None:
    process = start(CLEANING)
    process.send_signal(SIGINT)
    hear(process, "cleaning")
    process.send_signal(SIGTERM)
    code, out, err = ended(process)
    assert (code, out) == (-SIGINT, "cleaned\n")
    assert err.endswith("\nKeyboardInterrupt\n")


def test_where_a_first_one_was_lost_the_next_is_raised(start: Start) -> None:
    process = start("""
        class Deaf:
            def __del__(self):  # an error here is printed and forgotten
                say("ready")
                wait(60)
        with ends_by_signal():
            try:
                Deaf()
                say("again")
                wait(60)
            except Stopped as stopped:
                say(stopped)
    """)
    process.send_signal(SIGTERM)
    hear(process, "again")
    process.send_signal(SIGTERM)
    code, out, err = ended(process)
    assert (code, out) == (0, "stopped by SIGTERM\n")
    assert err.startswith("Exception ignored in: <function Deaf.__del__ at")


@pytest.mark.parametrize("where", ["ends_by_signal()", "Stops() as stops"])
def test_an_ignored_signal_stays_ignored(where: str, start: Start) -> None:
    process = start(f"with {where}:\n say('ready')\n held()\n say('done')", ignored="HUP INT")
    process.send_signal(SIGHUP)
    process.send_signal(SIGINT)
    assert ended(process) == (0, "done\n", "")


@pytest.mark.parametrize("opened", [ends_by_signal, Stops])
def test_the_handlers_are_restored(opened: Opened) -> None:
    before = [signal.getsignal(signum) for signum in STOPPING]
    with pytest.raises(ValueError), opened():
        assert [signal.getsignal(signum) for signum in STOPPING] != before
        raise ValueError
    assert [signal.getsignal(signum) for signum in STOPPING] == before


@pytest.mark.parametrize("opened", [ends_by_signal, Stops])
def test_in_another_thread_nothing_is_handled_and_nothing_fails(
    opened: Opened,
) -> None:
    before = [signal.getsignal(signum) for signum in STOPPING]
    within: list[object] = []

    def run() -> None:
        with opened():
            within.extend(signal.getsignal(signum) for signum in STOPPING)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert within == before


# --- the loop ---

LOOP = """
    try:
        with Stops() as stops:
            say("ready")
            step = 0
            while stops.signum is None:
                step += 1
                wait(0.3)
            say("saving")
            held()
            say("saved", stops.name, stops.twice)
            raise Stopped(stops.signum)
    except Stopped as stopped:
        say(stopped)
        sys.exit(stopped.exit_code)
"""


@pytest.mark.parametrize(
    ("signum", "code"), [(SIGINT, 130), (SIGTERM, 143), (SIGHUP, 129)], ids=lambda s: str(int(s))
)
def test_a_first_signal_waits_for_the_step_and_for_what_is_saved(
    signum: int, code: int, start: Start
) -> None:
    name = signal.Signals(signum).name
    process = start(LOOP)
    process.send_signal(signum)
    assert ended(process) == (
        code,
        f"saving\nsaved {name} False\nstopped by {name}\n",
        f"{name}: finishing the step and saving; repeat to stop immediately\n",
    )


def test_a_second_signal_stops_immediately(start: Start) -> None:
    process = start(LOOP)
    process.send_signal(SIGTERM)
    hear(process, "saving")
    process.send_signal(SIGINT)
    assert ended(process) == (
        130,
        "stopped by SIGINT\n",
        "SIGTERM: finishing the step and saving; repeat to stop immediately\n",
    )


def test_a_quiet_loop_prints_nothing(start: Start) -> None:
    process = start(LOOP.replace("Stops()", "Stops(quiet=True)"))
    process.send_signal(SIGTERM)
    assert ended(process)[::2] == (143, "")


def test_a_closed_stderr_has_no_effect(start: Start) -> None:
    process = start("os.close(2)\n" + textwrap.dedent(LOOP))
    process.send_signal(SIGHUP)
    assert ended(process) == (129, "saving\nsaved SIGHUP False\nstopped by SIGHUP\n", "")


AT_ONCE = """
    with Stops() as stops:
        say("ready")
        BEFORE
        try:
            with stops.at_once():
                say("evaluating")
                wait(60)
        except Stopped as stopped:
            say(stopped, stops.name, stops.twice)
        say("saving")
        held()
        say("saved")
"""


def test_what_changes_nothing_is_given_up_at_a_first_signal_and_saving_still_waits(
    start: Start,
) -> None:
    process = start(AT_ONCE.replace("BEFORE", "pass"))
    hear(process, "evaluating")
    process.send_signal(SIGTERM)
    assert ended(process) == (0, "stopped by SIGTERM SIGTERM False\nsaving\nsaved\n", "")


def test_work_without_state_does_not_start_after_a_signal(start: Start) -> None:
    process = start(AT_ONCE.replace("BEFORE", "held()"))
    process.send_signal(SIGTERM)
    code, out, _ = ended(process)
    assert (code, out) == (0, "stopped by SIGTERM SIGTERM False\nsaving\nsaved\n")


def test_a_second_signal_after_an_evaluation_was_given_up_stops_the_saving(start: Start) -> None:
    process = start(AT_ONCE.replace("BEFORE", "pass"))
    hear(process, "evaluating")
    process.send_signal(SIGTERM)
    hear(process, "stopped by SIGTERM SIGTERM False")
    hear(process, "saving")
    process.send_signal(SIGINT)
    code, out, err = ended(process)
    assert (code, out) == (1, "")
    assert err.endswith("\nqwen_local.console.signals.Stopped: stopped by SIGINT\n")


def test_a_second_signal_while_the_first_is_on_its_way_is_counted_and_breaks_no_cleaning_up() -> (
    None
):
    with Stops(quiet=True) as stops:
        cleaned = False
        with pytest.raises(Stopped) as stopped, stops.at_once():
            try:
                os.kill(os.getpid(), SIGTERM)
            finally:
                os.kill(os.getpid(), SIGINT)
                cleaned = True
    assert (cleaned, stopped.value.signum, stops.name, stops.twice) == (
        True,
        SIGTERM,
        "SIGTERM",
        True,
    )


def test_after_what_changes_nothing_a_first_signal_is_only_noted_again() -> None:
    with Stops(quiet=True) as stops:
        with stops.at_once():
            pass
        os.kill(os.getpid(), SIGTERM)
        assert (stops.signum, stops.name, stops.twice) == (SIGTERM, "SIGTERM", False)
