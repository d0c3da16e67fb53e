"""A Mac is kept awake for as long as it trains, and no longer."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_local.backends.probe import probe
from qwen_local.training import run
from qwen_local.training.awake import keep_awake
from qwen_local.training.loop import train_loop

Fake = Callable[[str], Path]
"""(what it does after it has said how it was called) -> where it says it."""


@pytest.fixture
def caffeinate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """An executable of that name, first on PATH."""

    def make(then: str) -> Path:
        said = tmp_path / "said"
        program = tmp_path / "bin/caffeinate"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho "$$ $@" > {said}.new\nmv {said}.new {said}\n{then}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        return said

    return make


def child_of(said: Path) -> tuple[int, str]:
    """(process id, arguments) of the fake, once it has begun."""
    for _ in range(12_000):
        if said.exists():
            process, _, arguments = said.read_text().strip().partition(" ")
            return int(process), arguments
        time.sleep(0.01)
    raise AssertionError("caffeinate was not started")


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_caffeinate_runs_for_this_process_while_training_and_is_gone_after(
    caffeinate: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    said = caffeinate("exec sleep 60")
    with caplog.at_level(logging.INFO), keep_awake("Darwin"):
        process, arguments = child_of(said)
        assert arguments == f"-i -w {os.getpid()}"
        assert alive(process)
    assert not alive(process)
    assert caplog.messages == []


@pytest.mark.parametrize("ended", [ValueError, KeyboardInterrupt])
def test_caffeinate_is_gone_after_whatever_ends_the_training(
    ended: type[BaseException], caffeinate: Fake
) -> None:
    said = caffeinate("exec sleep 60")
    with pytest.raises(ended), keep_awake("Darwin"):
        process, _ = child_of(said)
        raise ended
    assert not alive(process)


def test_ctrl_c_in_the_terminal_leaves_the_machine_awake_for_what_is_still_to_be_saved(
    caffeinate: Fake,
) -> None:
    said = caffeinate("exec sleep 60")
    with keep_awake("Darwin"):
        process, _ = child_of(said)
        assert os.getpgid(process) != os.getpgid(0)  # a terminal interrupts a whole group
        assert alive(process)


@pytest.mark.slow
def test_train_keeps_a_mac_awake_around_the_loop(
    caffeinate: Fake, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = caffeinate("exec sleep 60")
    mac = replace(probe(), system="Darwin")

    def watched_loop(*args: Any, **named: Any) -> Any:
        process, arguments = child_of(said)
        assert (arguments, alive(process)) == (f"-i -w {os.getpid()}", True)
        return train_loop(*args, **named)

    monkeypatch.setattr(run, "probe", lambda **_: mac)
    monkeypatch.setattr(run, "train_loop", watched_loop)
    assert cli("train", "--device", "cpu", "--steps", "1", "--output", "run").code == 0
    process, _ = child_of(said)
    assert not alive(process)


def test_elsewhere_nothing_is_started(caffeinate: Fake) -> None:
    said = caffeinate("exec sleep 60")
    with keep_awake("Linux"):
        time.sleep(0.2)
    assert not said.exists()


def test_a_caffeinate_that_is_missing_is_told_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.INFO), keep_awake("Darwin"):
        trained = True
    assert trained
    assert caplog.messages == [
        "the Mac may fall asleep while it trains: caffeinate cannot be started "
        "(No such file or directory)"
    ]


def test_a_caffeinate_that_fails_is_told_once_and_stops_nothing(
    caffeinate: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    said = caffeinate("exec sleep 60")
    with caplog.at_level(logging.INFO), keep_awake("Darwin"):
        process, _ = child_of(said)
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        trained = True
    assert trained
    assert caplog.messages == ["the Mac may have slept: caffeinate ended early with code -9"]
