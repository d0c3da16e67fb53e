"""`train --resume` without a job file: which run it takes, by whose job, and what it says of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_local.job.schema import Draft

Cli = Callable[..., Any]
TINY, OTHER = "qwen-local/tiny", "models/other"


def a_run(name: str, *, model: str = TINY, written: int, job: str = "") -> None:
    """A run in runs/, of which all that counts here is its job.yaml and when it was written to."""
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    content = f"model: {{name: {model}}}\noutput: elsewhere\n{job}"
    (folder / "job.yaml").write_text(content, encoding="utf-8")
    os.utime(folder / "job.yaml", (written, written))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Draft]]:
    """(what is resumed, by which job) of every run that would have been gone on with."""
    runs: list[tuple[str, Draft]] = []

    def train(draft: Draft, **how: Any) -> None:
        runs.append((how["resume"], draft))
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen_local.training.run.train", train)
    return runs


@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        ((), "runs/last"),
        (("--model", TINY), "runs/second"),
        (("--set", f"model.name={TINY}"), "runs/second"),
        (("--model", "/mnt/elsewhere/other"), "runs/last"),
        (("--output", "runs/python-functions"), "runs/python-functions"),
    ],
)
def test_without_a_job_the_newest_run_goes_on_by_its_own(
    arguments: tuple[str, ...], run: str, cli: Cli, told: list[tuple[str, Draft]]
) -> None:
    a_run("python-functions", written=1, job="train: {steps: 1}")
    a_run("second", written=2, job="train: {steps: 2}")
    a_run("last", model=OTHER, written=3, job="train: {steps: 3}")
    steps = {"runs/python-functions": 1, "runs/second": 2, "runs/last": 3}
    assert cli("train", "--resume", *arguments).code == 130
    ((resumed, draft),) = told
    assert (resumed, draft.job.train.steps) == (run, steps[run])


def test_flags_change_what_they_name_and_nothing_else(
    cli: Cli, told: list[tuple[str, Draft]]
) -> None:
    a_run("one", written=1, job="train: {steps: 4, batch_size: 3}")
    assert cli("train", "--epochs", "2", "--resume", "--set", "train.keep=9").code == 130
    ((_, draft),) = told
    train = draft.job.train
    assert (train.epochs, train.steps, train.batch_size, train.keep) == (2, None, 3, 9)


def test_a_job_that_is_given_holds_and_not_that_of_the_run(
    cli: Cli, told: list[tuple[str, Draft]]
) -> None:
    a_run("one", written=1, job="train: {steps: 4, batch_size: 3}")
    Path("job.yaml").write_text("train: {batch_size: 5}", encoding="utf-8")
    assert cli("train", "job.yaml", "--resume").code == 130
    ((resumed, draft),) = told
    assert (resumed, draft.job.train.epochs, draft.job.train.batch_size) == ("runs/one", 3, 5)


def test_a_step_is_one_of_the_newest_run(cli: Cli, told: list[tuple[str, Draft]]) -> None:
    a_run("one", written=1)
    Path("runs/one/checkpoints/step-000007").mkdir(parents=True)
    assert cli("train", "--resume=7").code == 130
    assert [resumed for resumed, _ in told] == ["runs/one/checkpoints/step-000007"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            (),
            "--resume: there is no run in runs/\n\nhint: pass --output, or --resume=RUN\n",
        ),
        (
            ("--model", TINY),
            f"--resume: there is no run of {TINY} in runs/\n\n"
            "hint: pass --output, or --resume=RUN\n",
        ),
        (
            ("--output", "mine"),
            "--resume: there is no run in mine\n\nhint: leave out --resume to start one\n",
        ),
    ],
)
def test_where_there_is_no_run_that_is_said(
    arguments: tuple[str, ...], said: str, cli: Cli
) -> None:
    Path("runs/empty").mkdir(parents=True)
    ended = cli("train", "--resume", *arguments)
    assert (ended.code, ended.out, ended.err) == (2, "", said)


@pytest.mark.slow
def test_a_finished_run_says_so_and_can_be_made_longer(cli: Cli) -> None:
    short = ("--steps", "2", "--device", "cpu", "--backend", "cuda", "--set", "data.limit=30")
    assert cli("train", *short, "--output", "runs/mine", "--quiet").code == 0
    said = cli("train", "--resume", "--device", "cpu")
    assert (said.code, said.out) == (0, "runs/mine/adapter\n")
    talk = said.err.splitlines()
    assert talk[0] == "run: runs/mine"
    assert talk[-3:] == [
        "runs/mine is finished already, after 2 steps: all steps done",
        "to train it further, raise train.epochs or train.steps",
        "next: qwen-local chat --adapter runs/mine",
    ]
    said = cli("train", "--resume", "--epochs", "1", "--device", "cpu")
    assert said.code == 0
    assert [line for line in said.err.splitlines() if line.startswith(("changed", "resumed"))] == [
        "resumed: after step 2 of 4",
        "changed: train.epochs was null, is 1",
        "changed: train.steps was 2, is null",
    ]
