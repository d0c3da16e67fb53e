"""Runs that die and go on: on the embedded model, by the very function that `train` calls."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_local.adapters.store import load_adapter
from qwen_local.backends.cuda.engine import TorchBackend
from qwen_local.backends.machine import Engine
from qwen_local.backends.mlx.engine import MlxBackend
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.embedded import sample_data_path, tiny_model_path
from qwen_local.errors import CheckpointError, JobError, RunBusyError
from qwen_local.job.schema import read_job
from qwen_local.models.source import fetch, find_model
from qwen_local.runs import checkpoints
from qwen_local.runs.curves import largest_difference
from qwen_local.runs.events import (
    EndEvent,
    EvalEvent,
    ResumeEvent,
    StartEvent,
    TrainEvent,
    WarningEvent,
    read_events,
)
from qwen_local.runs.lock import locked
from qwen_local.runs.run import Run
from qwen_local.runs.state import Checkpoint, from_files
from qwen_local.training.diverged import DivergedError
from qwen_local.training.resume import NEW_RUN, check_same, job_of_run
from qwen_local.training.run import train

pytestmark = pytest.mark.slow

STEPS, AN_EPOCH = 10, 5
SETS = (
    "data.limit=40",
    "data.eval_fraction=0.1",
    "train.epochs=2",
    "train.learning_rate=1e-3",
    "train.eval_every=3",
    "train.save_every=1",
    "train.keep=100",
)
HOW_IT_WENT = {"seconds", "peak_memory_bytes"}
"""What differs between two runs of one job."""


class Killed(BaseException):
    """As SIGKILL: nothing catches it, nothing is saved because of it."""


Kill = Callable[[int], None]
Go = Callable[..., EndEvent]


@pytest.fixture
def kill_after() -> Iterator[Kill]:
    """(steps) -> from now on an engine dies at the step after so many of its own; 0 for none."""
    monkeypatch = pytest.MonkeyPatch()

    def arm(steps: int) -> None:
        monkeypatch.undo()
        done = 0
        for backend in (TorchBackend, MlxBackend):
            step = backend.step

            def dying(*args: Any, step: Any = step, **kwargs: Any) -> Any:
                nonlocal done
                if done == steps:
                    raise Killed
                done += 1
                return step(*args, **kwargs)

            if steps:
                monkeypatch.setattr(backend, "step", dying)

    yield arm
    monkeypatch.undo()


@pytest.fixture
def go(tmp_path: Path) -> Go:
    """(folder, *sets, backend, resume=None) -> a run in a folder of this test, on the CPU."""

    def run(
        folder: str,
        *sets: str,
        backend: str = "cuda",
        resume: str | None = None,
        dropout: float = 0.1,
        output: bool = True,
    ) -> EndEvent:
        draft = read_job(
            None,
            sets=[*SETS, f"lora.dropout={dropout}", *sets],
            flags={"output": str(tmp_path / folder) if output else None},
        )
        return train(draft, backend=backend, device="cpu", quiet=True, resume=resume)

    return run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Engine], Path]:
    """(engine) -> the folder of a run with dropout 0.1 that nothing happened to."""
    made: dict[Engine, Path] = {}

    def make(engine: Engine) -> Path:
        if engine not in made:
            made[engine] = tmp_path_factory.mktemp("unbroken") / engine
            draft = read_job(
                None, sets=[*SETS, "lora.dropout=0.1"], flags={"output": str(made[engine])}
            )
            train(draft, backend=engine, device="cpu", quiet=True)
        return made[engine]

    return make


@pytest.fixture
def ended(unbroken: Callable[[Engine], Path], tmp_path: Path) -> Path:
    """A copy of a finished run on PyTorch, to do things to."""
    return Path(shutil.copytree(unbroken("cuda"), tmp_path / "run"))


def saved(run: Path, step: int = STEPS) -> Checkpoint:
    return from_files(checkpoints.read(run / "checkpoints" / checkpoints.step_name(step)))


def events(run: Path) -> list[dict[str, Any]]:
    """What was trained and evaluated, without how long it took."""
    return [
        {name: value for name, value in event.to_json().items() if name not in HOW_IT_WENT}
        | {"event": event.KIND}
        for event in read_events(run / "metrics.jsonl")
        if isinstance(event, TrainEvent | EvalEvent | WarningEvent)
    ]


def losses(run: Path) -> list[float]:
    return [event.loss for event in read_events(run / "metrics.jsonl", TrainEvent)]


def assert_the_same(run: Path, other: Path) -> None:
    """Bit for bit: adapter, moments, metrics, where the run stands, and the best adapter."""
    a, b = saved(run), saved(other)
    for one, two in (
        (a.adapter_state.adapter, b.adapter_state.adapter),
        (a.adapter_state.exp_avg, b.adapter_state.exp_avg),
        (a.adapter_state.exp_avg_sq, b.adapter_state.exp_avg_sq),
    ):
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert events(run) == events(other)
    for fields in (states := [s.state.to_json() for s in (a, b)]):
        fields.pop("seconds")
        fields.pop("evaluation_seconds")
    assert states[0] == states[1]
    tiny = fetch(find_model(str(tiny_model_path()))).architecture
    best, other_best = (load_adapter(folder, tiny).arrays for folder in (run, other))
    assert all(np.array_equal(best[name], other_best[name]) for name in best)


@pytest.mark.parametrize("at", [1, 3, AN_EPOCH, 7], ids="after step {}".format)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    engine: Engine,
    at: int,
    unbroken: Callable[[Engine], Path],
    go: Go,
    kill_after: Kill,
    tmp_path: Path,
) -> None:
    kill_after(at)
    with pytest.raises(Killed):
        go("run", backend=engine)
    kill_after(0)
    summary = go("run", backend=engine, resume="")
    assert summary.steps == STEPS
    assert_the_same(tmp_path / "run", unbroken(engine))
    kept = [e.step for e in read_events(tmp_path / "run" / "metrics.jsonl", ResumeEvent)]
    assert kept == [at]


def test_steps_since_the_last_checkpoint_are_computed_again(
    unbroken: Callable[[Engine], Path], go: Go, kill_after: Kill, tmp_path: Path
) -> None:
    rarely = "train.save_every=5"
    kill_after(9)
    with pytest.raises(Killed):
        go("run", rarely)
    assert len(losses(tmp_path / "run")) == 9
    kill_after(0)
    go("run", rarely, resume="")
    assert_the_same(tmp_path / "run", unbroken("cuda"))


def test_a_run_that_died_before_its_first_checkpoint_begins_again(
    unbroken: Callable[[Engine], Path], go: Go, kill_after: Kill, tmp_path: Path
) -> None:
    kill_after(2)
    with pytest.raises(Killed):
        go("run", "train.save_every=100")
    kill_after(0)
    go("run", "train.save_every=100", resume="")
    assert_the_same(tmp_path / "run", unbroken("cuda"))


def test_a_run_goes_from_one_engine_to_the_other_and_back(
    go: Go, kill_after: Kill, tmp_path: Path
) -> None:
    go("whole", backend="mlx", dropout=0.0)
    for backend, at, resume in (("mlx", 3, None), ("cuda", 4, "")):
        kill_after(at)
        with pytest.raises(Killed):
            go("run", backend=backend, dropout=0.0, resume=resume)
    kill_after(0)
    summary = go("run", backend="mlx", dropout=0.0, resume="")
    assert summary.backend == "mlx"
    engines = [e.backend for e in read_events(tmp_path / "run/metrics.jsonl", ResumeEvent)]
    assert engines == ["cuda", "mlx"]
    assert largest_difference(losses(tmp_path / "run"), losses(tmp_path / "whole")) <= 1e-4


def test_by_itself_a_run_goes_on_with_the_engine_that_began_it(
    go: Go, kill_after: Kill, tmp_path: Path
) -> None:
    kill_after(1)
    with pytest.raises(Killed):
        go("run", "train.epochs=1", backend="mlx")
    kill_after(0)
    assert go("run", "train.epochs=1", backend="auto", resume="").backend == "mlx"


def test_a_finished_run_says_so_and_stays_as_it_is(ended: Path, go: Go) -> None:
    before = {path: path.read_bytes() for path in ended.rglob("*") if path.is_file()}
    summary = go("run", resume="")
    assert (summary.steps, summary.stopped_because) == (STEPS, "all steps done")
    before.pop(ended / ".lock")
    assert before == {path: path.read_bytes() for path in before}


def test_the_first_event_of_a_process_says_what_makes_runs_comparable(ended: Path, go: Go) -> None:
    go("run", "train.epochs=3", resume="")
    run = Run(ended)
    (start,) = run.events_of(StartEvent)
    (resume,) = run.events_of(ResumeEvent)
    assert run.data is not None and run.data.eval is not None and run.finished is not None
    identity, tokenizer = saved(ended).identity, ChatTokenizer.load(tiny_model_path())
    for event in (start, resume):
        assert event.vocabulary == fetch(find_model("qwen-local/tiny")).architecture.vocabulary
        assert event.tokenizer_sha256 == tokenizer.sha256
        assert event.template_sha256 == tokenizer.template_sha256 == run.data.template_sha256
        assert (event.eval_rows, event.eval_rows_sha256) == (7, identity.eval_rows)
        assert run.data.eval.rows == 7
        assert event.trainable_parameters == run.finished.trainable_parameters
        assert event.total_parameters == run.finished.total_parameters


def test_the_losses_of_evaluation_rows_are_those_of_the_events_after_resuming(
    ended: Path, unbroken: Callable[[Engine], Path], go: Go
) -> None:
    go("run", resume="4")
    for folder in (ended, unbroken("cuda")):
        run = Run(folder)
        evaluated, rows = list(run.events_of(EvalEvent)), run.eval_rows
        assert rows is not None
        assert rows.steps_E.tolist() == [event.step for event in evaluated]
        means = rows.nll_ER.sum(axis=1, dtype=np.float64) / rows.tokens_R.sum()
        assert means == pytest.approx([event.loss for event in evaluated], rel=1e-6)
    name = "eval_rows.safetensors"
    assert (ended / name).read_bytes() == (unbroken("cuda") / name).read_bytes()


def test_a_finished_run_can_be_made_longer(ended: Path, go: Go) -> None:
    summary = go("run", "train.epochs=3", "train.eval_every=5", resume="")
    assert (summary.steps, len(losses(ended))) == (15, 15)
    resumed = next(read_events(ended / "metrics.jsonl", ResumeEvent))
    assert resumed.step == STEPS
    assert resumed.changed == {"train.epochs": [2, 3], "train.eval_every": [3, 5]}
    rates = [e.learning_rate for e in read_events(ended / "metrics.jsonl", TrainEvent)]
    assert rates[9] < rates[10] > rates[14]  # of the new, longer cosine from here on
    assert "epochs: 3" in (ended / "job.yaml").read_text()


def test_a_run_made_shorter_than_it_is_ends_with_an_evaluation_and_an_adapter(
    go: Go, kill_after: Kill, tmp_path: Path
) -> None:
    rarely = "train.eval_every=100"
    kill_after(7)
    with pytest.raises(Killed):
        go("run", rarely)
    kill_after(0)
    summary = go("run", rarely, "train.epochs=1", resume="")
    assert (summary.steps, summary.best_step, summary.stopped_because) == (7, 7, "all steps done")
    assert (tmp_path / "run/adapter/peft/adapter_model.safetensors").exists()


def test_another_job_is_refused_by_name(ended: Path, go: Go) -> None:
    with pytest.raises(JobError) as refused:
        go("run", "lora.rank=4", "train.learning_rate=5e-4", "data.train_on=last", resume="")
    assert str(refused.value) == "\n\n".join(
        f"set {setting}: this run started with {was}; found {now}\n\nhint: {NEW_RUN}"
        for setting, was, now in (
            ("data.train_on=last", "'assistant'", "'last'"),
            ("lora.rank=4", "16", "4"),  # and not alpha, which follows from it
            ("train.learning_rate=5e-4", "0.001", "0.0005"),
        )
    )
    assert len(losses(ended)) == STEPS


def test_a_key_that_came_with_a_later_version_had_its_default(ended: Path) -> None:
    identity = saved(ended).identity
    older = {name: dict(section) for name, section in identity.job.items() if name != "output"}
    del older["train"]["weight_decay"]
    del older["train"]["keep"]
    changed = check_same(read_job(None), replace(identity, job=older), identity)
    assert changed == {"train.keep": (2, 100)}


def test_changed_data_are_refused_and_the_same_data_elsewhere_are_not(
    ended: Path, go: Go, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "train.jsonl"
    shutil.copy(sample_data_path() / "train.jsonl", elsewhere)
    data = f"data.train={elsewhere}"
    assert go("run", data, resume="").steps == STEPS
    lines = elsewhere.read_text().splitlines()
    row = json.loads(lines[3])
    row["messages"][-1]["content"] += "!"
    lines[3] = json.dumps(row)
    elsewhere.write_text("\n".join(lines))
    with pytest.raises(JobError) as refused:
        go("run", data, "train.epochs=3", resume="")
    assert str(refused.value) == (
        f"data.train: this run started with {sample_data_path() / 'train.jsonl'}; found {elsewhere}"
        f"\n\nhint: {NEW_RUN}"
    )


def test_another_base_model_is_refused(ended: Path, go: Go, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model_path(), model)
    assert go("run", f"model.name={model}", f"data.train={sample()}", resume="").steps == STEPS
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1_000_000:-1:2000] = bytes(500)  # here and there a weight
    weights.write_bytes(content)
    with pytest.raises(JobError) as refused:
        go("run", f"model.name={model}", f"data.train={sample()}", resume="")
    assert str(refused.value) == (
        f"model.name: {model} is not the base model that this run started with: its weights "
        f"differ\n\nhint: {NEW_RUN}"
    )


def sample() -> Path:
    return sample_data_path() / "train.jsonl"


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(
    ended: Path,
    unbroken: Callable[[Engine], Path],
    go: Go,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = ended / "checkpoints"
    weights = root / "step-000010" / "optimizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (root / "step-000009" / "COMPLETE.json").unlink()
    with caplog.at_level("INFO", logger="qwen_local"):
        go("run", resume="")
    size = (unbroken("cuda") / "checkpoints/step-000010/optimizer.safetensors").stat().st_size
    said = [
        message for message in caplog.messages if " is damaged: " in message or "good" in message
    ]
    assert said == [
        f"warning: {root}/step-000010 is damaged: optimizer.safetensors: expected {size} bytes; "
        f"found {size - 1}",
        f"warning: {root}/step-000009 is damaged: COMPLETE.json: no such file or directory",
        "the newest good checkpoint is at step 8: 2 steps to repeat",
    ]
    assert {path.name for path in root.glob(".*")} == {
        ".damaged-step-000009",
        ".damaged-step-000010",
    }
    assert_the_same(ended, unbroken("cuda"))


def test_with_no_good_checkpoint_nothing_begins_again_by_itself(ended: Path, go: Go) -> None:
    for step in range(1, STEPS + 1):
        (ended / f"checkpoints/step-{step:06d}/progress.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint can be loaded: step-000010/progress"):
        go("run", resume="")
    assert len(losses(ended)) == STEPS


def test_an_older_checkpoint_can_be_gone_on_from(
    ended: Path, unbroken: Callable[[Engine], Path], go: Go
) -> None:
    shutil.rmtree(ended / "adapter")  # as if it had died while it was replaced
    go("run", resume=str(ended / "checkpoints/step-000004"))
    assert_the_same(ended, unbroken("cuda"))
    go("run", resume="7")
    assert_the_same(ended, unbroken("cuda"))


def test_a_run_that_was_moved_goes_on_where_it_is_now(
    ended: Path, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended.rename(tmp_path / "moved")
    for resume in ("moved", "moved/checkpoints/step-000009", str(tmp_path / "moved/")):
        draft = read_job(job_of_run(resume), preset="none")
        summary = train(draft, backend="auto", device="cpu", quiet=True, resume=resume)
        assert (Path(summary.run).resolve(), summary.steps) == (tmp_path / "moved", STEPS)
        assert Path(summary.adapter).exists()


def test_a_finished_run_whose_adapter_is_gone_writes_it_again(ended: Path, go: Go) -> None:
    shutil.rmtree(ended / "adapter")
    assert go("run", resume="").steps == STEPS
    assert (ended / "adapter/mlx/adapters.safetensors").exists()
    assert len(losses(ended)) == STEPS


def test_the_adapter_of_a_later_step_does_not_stay(ended: Path, go: Go, kill_after: Kill) -> None:
    kill_after(1)
    with pytest.raises(Killed):
        go("run", resume="1")  # before the first evaluation after a step
    assert not (ended / "adapter").exists()


def test_numbers_that_are_not_finite_are_never_saved(
    ended: Path, go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = TorchBackend.state

    def overflown(self: TorchBackend) -> Any:
        good = state(self)
        moments = {name: array + np.inf for name, array in good.exp_avg_sq.items()}
        return replace(good, exp_avg_sq=moments)

    monkeypatch.setattr(TorchBackend, "state", overflown)
    with pytest.raises(DivergedError, match="step 9: the adapter or AdamW's moments"):
        go("run", resume="8")
    assert checkpoints.steps_in(ended / "checkpoints")[0] == 8


def test_a_damaged_line_of_the_metrics_is_told(
    ended: Path, go: Go, caplog: pytest.LogCaptureFixture
) -> None:
    path = ended / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    fifth = next(at for at, line in enumerate(lines) if '"train", "step": 5' in line)
    path.write_text("".join([*lines[:fifth], "?\n", *lines[fifth + 1 :]]))
    with caplog.at_level("INFO", logger="qwen_local"):
        go("run", resume="8")
    assert f"warning: {path} is damaged: events of steps 5 to 8 are lost" in (caplog.messages)


def test_a_checkpoint_that_verifies_and_is_none_is_damaged_too(ended: Path, go: Go) -> None:
    root = ended / "checkpoints"
    files = checkpoints.read(root / "step-000010")
    checkpoints.save(root, 10, {**files, "progress.json": b"{}"})
    assert go("run", resume="").steps == STEPS
    assert (root / ".damaged-step-000010").is_dir()


def test_what_resume_cannot_mean_is_refused(
    ended: Path, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = ", ".join(f"step-{step:06d}" for step in range(STEPS, 0, -1))
    for folder, resume, said in (
        ("none", "", f"there is no run in {tmp_path / 'none'}"),
        ("run", "99", f"{ended} has no checkpoint step-000099\n\nhint: it has {there}"),
        ("run", "elsewhere", "elsewhere is neither a run nor a checkpoint"),
        ("run", "²", "² is neither a run nor a checkpoint"),
        ("run", "9" * 5000, "is neither a run nor a checkpoint"),
        ("other", str(ended), f"{tmp_path / 'other'} is not the run that `resume` names, {ended}"),
    ):
        with pytest.raises(JobError) as refused:
            go(folder, resume=resume)
        assert said in str(refused.value)
    with pytest.raises(JobError) as refused:
        go("run", resume="", output=False)
    assert str(refused.value) == (
        "resume: there is no run of qwen-local/tiny in runs/\n\n"
        "hint: pass `output`, or `resume=RUN`"
    )


def test_a_run_is_of_one_process_alone(ended: Path, go: Go) -> None:
    with locked(ended), pytest.raises(RunBusyError, match="the run is in use by process"):
        go("run", resume="")
    with locked(ended), pytest.raises(RunBusyError):
        go("run")
    with pytest.raises(JobError) as taken:
        go("run")
    assert str(taken.value) == (
        f"output: {ended} is not empty\n\n"
        "hint: continue the run in it with `resume`, or choose another folder with `output`"
    )


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
