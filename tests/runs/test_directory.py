"""The name of a run's folder, that it is free, and what is written of its surroundings."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import qwen_local
from qwen_local.backends.base import Setup
from qwen_local.backends.select import Choice, Machine
from qwen_local.errors import JobError, RunBusyError
from qwen_local.job.schema import Job, ModelSpec, read_job
from qwen_local.models.source import fetch, find_model
from qwen_local.runs.directory import (
    check_free,
    claim_folder,
    default_output,
    environment,
    locked,
    make_folder,
    run_folder,
)

TODAY = f"{datetime.date.today():%Y%m%d}"
HINT = "\n\nhint: choose another folder with --output"


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
        claim_folder(tmp_path, read_job(None).complete(0))
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


# --- environment.json ---


def environment_of(commit: str | None) -> dict[str, Any]:
    machine = Machine(
        system="Linux",
        processor="x86_64",
        mlx="0.32.4",
        metal=False,
        torch=None,
        torch_cuda=None,
        cuda=False,
        bfloat16=False,
        nvidia=False,
        driver=None,
        memory_bytes=8,
        gpu_bytes=0,
    )
    model = fetch(find_model("qwen-local/tiny"))
    setup = Setup(model=model, lora=None, device="cpu", dtype="float32", micro_batch_tokens=77)
    return environment(machine, Choice("mlx", "cpu", "a test"), setup, commit)


def test_the_environment_names_versions_hardware_and_the_commit_of_the_model() -> None:
    found = environment_of("abc")
    assert {key: found[key] for key in ("backend", "device", "dtype", "base_commit")} == {
        "backend": "mlx",
        "device": "cpu",
        "dtype": "float32",
        "base_commit": "abc",
    }
    assert (found["reason"], found["micro_batch_tokens"]) == ("a test", 77)
    assert found["hardware"] == {
        "system": "Linux",
        "processor": "x86_64",
        "memory_bytes": 8,
        "gpu": None,
        "gpu_bytes": 0,
        "driver": None,
    }
    assert found["packages"]["qwen-local"] == qwen_local.__version__
    assert found["packages"]["numpy"] is not None
    assert found["python"].startswith("3.")
    assert found["cpu_count"] == os.cpu_count()
    assert found.keys() >= {"platform", "processor", "git"}


def test_a_working_folder_without_git_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment_of(None)["git"] is None
    monkeypatch.setenv("PATH", "")
    assert environment_of(None)["git"] is None


def test_only_one_of_two_runs_takes_a_folder(tmp_path: Path) -> None:
    job = read_job(None).complete(1)
    make_folder(tmp_path / "run")
    claim_folder(tmp_path / "run", job)
    with pytest.raises(JobError) as raised:
        claim_folder(tmp_path / "run", job)
    assert str(raised.value) == (
        f"output: {tmp_path / 'run'} was taken by another run just now\n\n"
        "hint: run the command again"
    )


def test_a_run_is_held_by_one_process_which_is_named(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunBusyError) as busy:
        check_free(tmp_path)
    owner = json.loads((tmp_path / ".lock").read_text())
    assert owner["pid"] == os.getpid()
    assert busy.value.exit_code == 3
    assert str(busy.value) == (
        f"{tmp_path}: the run is being worked on by process {os.getpid()} on {owner['host']}, "
        f"since {owner['since']}\n\nhint: wait for it, or stop it first"
    )
    check_free(tmp_path)  # a lock that nobody holds is no content


def test_the_lock_of_a_process_that_died_is_taken_over(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from qwen_local.runs.directory import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert (died.returncode, (tmp_path / ".lock").exists()) == (-9, True)
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="cannot be made: not a directory"):
        make_folder(tmp_path / "file/run")
