"""`Run`: everything about a run from its directory, whatever is missing or old."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from qwen_local.errors import JobError
from qwen_local.runs.events import EvalEvent, StartEvent, TrainEvent, read_events
from qwen_local.runs.run import Run

OLD = Path(__file__).parents[1] / "golden/old_run"
"""Text files of a run of four steps, written by commit d8fa3b6."""


@pytest.fixture
def old(tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(OLD, tmp_path / "old")))


def newest(model: str | None) -> Path | None:
    run = Run.latest(model=model)
    return None if run is None else run.folder


# --- a run of the version before ---


def test_a_run_of_the_version_before_reads_whole() -> None:
    run = Run.open(OLD)
    job = run.job
    assert job is not None
    assert (job.train.steps, job.data.limit, run.model_name) == (4, 30, "qwen-local/tiny")
    assert run.environment["packages"]["qwen-local"] == "0.1.0"
    assert run.data is not None and run.data.eval is not None
    assert (run.data.sources[0].records, run.data.train.rows, run.data.eval.rows) == (30, 26, 4)
    assert run.data.template_sha256 is not None
    assert run.end is not None and run.end == run.finished
    assert (run.end.steps, run.end.best_step, run.end.run) == (4, 4, "runs/old")
    assert run.checkpoints == [4]
    assert (run.best_adapter, run.eval_rows) == (None, None)


def test_every_line_of_its_events_is_read() -> None:
    lines = [json.loads(line) for line in (OLD / "metrics.jsonl").read_text().splitlines()]
    run = Run.open(OLD)
    assert [event.KIND for event in run.events] == [line["event"] for line in lines]
    for event, line in zip(run.events, lines, strict=True):
        written = {"event": event.KIND, **event.to_json()}
        assert {name: written[name] for name in line} == line
    assert [event.step for event in run.events_of(TrainEvent)] == [1, 2, 3, 4]
    assert [event.step for event in run.events_of(EvalEvent)] == [0, 2, 4]
    (start,) = run.events_of(StartEvent)
    assert (start.rows, start.vocabulary, start.eval_rows) == (26, None, None)


# --- leniency ---


NESTED = pytest.param(b"[" * 100_000, marks=pytest.mark.slow)


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b"\xff\xfe", NESTED, b"a: &a [*a]\n"])
@pytest.mark.parametrize("name", ["job.yaml", "environment.json", "data.json", "metrics.jsonl"])
def test_a_broken_file_leaves_the_others_readable(name: str, broken: bytes, old: Run) -> None:
    (old.folder / name).write_bytes(broken)
    run = Run.open(old.folder)
    found = {
        "job.yaml": run.job is not None and run.job.data.limit == 30,
        "environment.json": bool(run.environment),
        "data.json": run.data is not None,
        "metrics.jsonl": bool(run.events),
    }
    assert [each for each, is_there in found.items() if not is_there] == [name]


def test_a_folder_with_nothing_but_a_job_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("train: {steps: 3}\n")
    run = Run.open(tmp_path)
    assert (run.environment, run.data, run.events, run.end, run.checkpoints) == (
        *({}, None, ()),
        None,
        [],
    )
    assert (run.best_adapter, run.eval_rows) == (None, None)


def test_reading_writes_nothing(old: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in old.folder.rglob("*")}
    run = Run.open(old.folder)
    _ = run.job, run.environment, run.data, run.events, run.end, run.checkpoints, run.eval_rows
    assert {path: path.stat().st_mtime_ns for path in old.folder.rglob("*")} == before


# --- which run ---


@pytest.mark.parametrize("place", ["", "adapter", "adapter/peft", "adapter/mlx"])
def test_a_run_is_found_from_any_of_its_adapter_folders(place: str, old: Run) -> None:
    for layout in (old.files.peft, old.files.mlx):
        layout.mkdir(parents=True)
    for run in (Run.open(old.folder / place), Run.of_adapter(old.folder / place)):
        assert run is not None and run.folder == old.folder.resolve()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert Run.find(tmp_path) is None
    with pytest.raises(JobError) as refused:
        Run.open(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path}: there is no run in {tmp_path}\n\n"
        "hint: name the folder that holds the run's job.yaml"
    )


def test_the_best_adapter_is_given_where_its_weights_are(old: Run) -> None:
    for layout, name in (("mlx", "adapters"), ("peft", "adapter_model")):
        folder = old.files.adapter / layout
        folder.mkdir(parents=True)
        (folder / f"{name}.safetensors").touch()
        assert old.best_adapter == folder


def test_a_run_that_a_signal_ended_has_an_end_and_is_not_finished(old: Run) -> None:
    text = old.files.metrics.read_text()
    old.files.metrics.write_text(text.replace("all steps done", "SIGTERM"))
    run = Run(old.folder)
    assert run.end is not None and run.finished is None


def test_a_run_with_events_after_its_end_has_no_end(old: Run) -> None:
    with old.files.metrics.open("a", encoding="utf-8") as file:
        file.write('{"event": "checkpoint", "step": 5}\n')
    assert Run(old.folder).end is None
    assert len(list(read_events(old.files.metrics))) == len(Run.open(OLD).events) + 1


def test_the_latest_run_of_a_model_is_the_one_that_was_written_to_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert newest("qwen-local/tiny") is None
    for name, job, begun, moved_on in (
        ("python-functions", "model: {name: qwen-local/tiny}", 10, 40),
        ("second", "model: {name: /mnt/models/tiny/}", 20, 40),
        ("stop", "", 30, None),  # died before its first event; of the default model
        ("other", "model: {name: Qwen/Qwen3-4B}", 50, 60),
    ):
        folder = Path("runs", name)
        folder.mkdir(parents=True)
        for file, content, at in (("job.yaml", job, begun), ("metrics.jsonl", "", moved_on)):
            if at is not None:
                (folder / file).write_text(content)
                os.utime(folder / file, (at, at))
    Path("runs/tiny-20261101-1").mkdir()  # no run
    assert newest("qwen-local/tiny") == Path("runs/second")  # of two at once by its name
    os.utime("runs/python-functions/metrics.jsonl", (41, 41))
    assert newest("qwen-local/tiny") == Path("runs/python-functions")
    os.utime("runs/stop/job.yaml", (42, 42))
    assert newest("qwen-local/tiny") == Path("runs/stop")
    assert newest(None) == Path("runs/other")
    assert newest("Qwen/Qwen3-0.6B") is None
