"""The name of a run's folder, and that it is free."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from qwen_local.errors import JobError
from qwen_local.job.schema import Job, ModelSpec, read_job
from qwen_local.runs.directory import (
    check_free,
    claim_folder,
    default_output,
    make_folder,
    run_folder,
)
from qwen_local.runs.lock import locked

TODAY = f"{datetime.date.today():%Y%m%d}"
HINT = "\n\nhint: choose another folder with `output`"


def refusal(output: Path) -> str:
    with pytest.raises(JobError) as raised:
        check_free(output)
    return str(raised.value)


# --- the name ---


def test_the_default_is_named_after_the_model_and_the_day_and_counts_up(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        output = default_output("Qwen/Qwen3-0.6B", tmp_path)
        assert output == tmp_path / f"Qwen3-0.6B-{TODAY}-{number}"
        output.mkdir()


def test_a_number_that_became_free_is_taken_again(tmp_path: Path) -> None:
    (tmp_path / f"tiny-{TODAY}-2").mkdir()
    assert default_output("qwen-local/tiny", tmp_path).name == f"tiny-{TODAY}-1"


@pytest.mark.parametrize(
    ("model", "name"), [("models/mine/", "mine"), ("/data/qwen", "qwen"), (".", "model")]
)
def test_a_folder_gives_its_own_name(model: str, name: str, tmp_path: Path) -> None:
    assert default_output(model, tmp_path).name == f"{name}-{TODAY}-1"


def test_naming_a_folder_makes_none(tmp_path: Path) -> None:
    default_output("qwen-local/tiny", tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_a_job_without_output_gets_the_default_in_runs() -> None:
    folder = run_folder(Job(model=ModelSpec(name="Qwen/Qwen3-0.6B")))
    assert (folder.parent, folder.name[:11]) == (Path("runs"), "Qwen3-0.6B-")


def test_an_output_below_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert run_folder(Job(output="~/runs/a")) == Path("/home/me/runs/a")
    assert run_folder(Job(output="~nobody-of-this-name/a")) == Path("~nobody-of-this-name/a")


# --- that it is free ---


def test_a_new_folder_and_an_empty_one_are_free(tmp_path: Path) -> None:
    check_free(tmp_path)
    check_free(tmp_path / "new" / "newer")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_folder_is_free_below_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_free(Path("runs/a"))
    check_free(Path())


def test_a_folder_that_holds_something_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    assert refusal(tmp_path) == f"output: {tmp_path} is not empty{HINT}, or remove this one"


def test_what_a_run_left_that_died_before_it_had_a_job_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".new-job.yaml").write_text("model: {na", encoding="utf-8")
    check_free(tmp_path)
    with locked(tmp_path):
        claim_folder(tmp_path, read_job(None).job)
    assert not (tmp_path / ".new-job.yaml").exists()


def test_a_file_is_refused_as_the_folder_and_on_the_way_to_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for output in (file, file / "run", file / "runs" / "run"):
        assert refusal(output) == f"output: {file} is not a folder{HINT}"


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    assert refusal(link) == f"output: {link} is not a folder{HINT}"


def test_a_folder_that_cannot_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may always write
    for output in (tmp_path, tmp_path / "runs" / "run"):
        assert refusal(output) == f"output: {tmp_path} cannot be written to{HINT}"


def test_a_name_that_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    output = tmp_path / ("a" * 300)
    assert refusal(output) == f"output: {output}: File name too long{HINT}"


# --- that it is taken ---


def test_only_one_of_two_runs_takes_a_folder(tmp_path: Path) -> None:
    job = read_job(None).complete(1)
    make_folder(tmp_path / "run")
    claim_folder(tmp_path / "run", job)
    with pytest.raises(JobError) as raised:
        claim_folder(tmp_path / "run", job)
    assert str(raised.value) == (
        f"output: another run has just taken {tmp_path / 'run'}\n\nhint: run the command again"
    )


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="cannot be created: not a directory"):
        make_folder(tmp_path / "file/run")
