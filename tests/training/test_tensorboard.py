"""TensorBoard's own reader finds what metrics.jsonl says, and nobody else meets TensorBoard."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qwen_local.backends.base import StepResult
from qwen_local.backends.machine import Engine
from qwen_local.runs.events import AdapterEvent, EvalEvent, MemoryEvent, TrainEvent, read_events
from qwen_local.training.tensorboard import TensorBoard

Cli = Callable[..., Any]
Curves = Mapping[str, list[tuple[int, float]]]

JOB = (
    *("--device", "cpu", "--steps", "4", "--output", "run"),
    *("--set", "data.limit=60", "--set", "train.eval_every=2"),
)
REPORT = ("--set", "train.report_to=[tensorboard]")


def shown(folder: Path) -> Curves:
    """(step, value) of every point, by tag, as TensorBoard reads them."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(point.step, point.value) for point in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def logged(path: Path) -> Curves:
    """The same from metrics.jsonl, in single precision."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for event in read_events(path):
        if isinstance(event, TrainEvent | EvalEvent):
            values = event.to_json()
            step = values.pop("step")
            for name, value in values.items():
                points = curves.setdefault(f"{event.KIND}/{name}", [])
                points.append((step, float(np.float32(value))))
    return curves


def test_the_curves_of_a_run_are_those_of_its_metrics(engine: Engine, cli: Cli) -> None:
    said = cli("train", "--backend", engine, *JOB, *REPORT)
    assert said.code == 0
    assert "tensorboard" not in said.err.lower()
    curves = shown(Path("run/tensorboard"))
    assert curves == logged(Path("run/metrics.jsonl"))
    assert sorted(curves) == [
        "eval/loss",
        "eval/perplexity",
        "eval/seconds",
        "eval/supervised_tokens",
        "train/computed_tokens",
        "train/epoch",
        "train/grad_norm",
        "train/learning_rate",
        "train/loss",
        "train/peak_memory_bytes",
        "train/seconds",
        "train/supervised_tokens",
        "train/tokens",
    ]
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in curves["eval/loss"]] == [0, 2, 4]


@pytest.mark.slow
def test_a_run_that_is_cut_off_has_the_curves_that_its_metrics_have(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_local.backends.cuda.engine import TorchBackend

    real_step = TorchBackend.step

    def stop_at_the_third(self: TorchBackend, *args: Any, **named: Any) -> StepResult:
        if self._steps == 2:
            # What is on disk at this very moment is what a kill would leave.
            assert shown(Path("run/tensorboard")) == logged(Path("run/metrics.jsonl"))
            raise KeyboardInterrupt
        return real_step(self, *args, **named)

    monkeypatch.setattr(TorchBackend, "step", stop_at_the_third)
    assert cli("train", "--backend", "cuda", *JOB, *REPORT).code == 130
    curves = shown(Path("run/tensorboard"))
    assert curves == logged(Path("run/metrics.jsonl"))
    assert [step for step, _ in curves["train/loss"]] == [1, 2]


def test_a_point_has_the_time_of_its_event(tmp_path: Path) -> None:
    before = time.time()
    with closing(TensorBoard(tmp_path / "tensorboard")) as board:
        board.write(TrainEvent(step=1, loss=0.5))
        between = time.time()
        board.write(TrainEvent(step=2, loss=0.25))
    first, second = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert before <= first.wall_time <= between <= second.wall_time <= time.time()


def test_a_number_that_is_not_finite_or_beyond_single_precision_is_no_obstacle(
    tmp_path: Path,
) -> None:
    with closing(TensorBoard(tmp_path / "tensorboard")) as board:
        board.write(TrainEvent(step=1, loss=math.nan, grad_norm=math.inf, tokens=7))
        board.write(EvalEvent(step=1, loss=-math.inf, perplexity=math.exp(700)))
    curves = shown(tmp_path / "tensorboard")
    assert math.isnan(curves["train/loss"][0][1])
    assert curves["train/grad_norm"] == [(1, math.inf)]
    assert curves["train/tokens"] == [(1, 7.0)]
    assert curves["eval/loss"] == [(1, -math.inf)]
    assert curves["eval/perplexity"] == [(1, math.inf)]


def test_only_train_and_eval_have_curves(tmp_path: Path) -> None:
    with closing(TensorBoard(tmp_path / "tensorboard")) as board:
        board.write(AdapterEvent(step=3))
        board.write(MemoryEvent(step=4, micro_batch_tokens=5))
    assert shown(tmp_path / "tensorboard") == {}


def test_steps_that_a_resumed_run_does_again_are_shown_once(tmp_path: Path) -> None:
    for done in (0, 2):
        with closing(TensorBoard(tmp_path / "tensorboard", after=done)) as board:
            for step in range(done + 1, 5):
                board.write(TrainEvent(step=step, loss=done + 1 / step))
    points = [(1, 1.0), (2, 0.5), (3, pytest.approx(2 + 1 / 3)), (4, 2.25)]
    assert shown(tmp_path / "tensorboard")["train/loss"] == points


def test_a_run_that_goes_on_goes_on_in_a_file_of_its_own(tmp_path: Path) -> None:
    for step, done in ((1, 0), (2, 1)):
        with closing(TensorBoard(tmp_path / "tensorboard", after=done)) as board:
            board.write(TrainEvent(step=step, loss=1 / step))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert shown(tmp_path / "tensorboard")["train/loss"] == [(1, 1.0), (2, 0.5)]


WATCHED = """
import sys
sys.argv = ["qwen-local", *sys.argv[1:]]
from qwen_local.cli import main
try:
    main()
finally:
    print("loaded:", *({"tensorboard", "tensorflow"} & set(sys.modules)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("report", "loaded"), [((), "loaded:"), (REPORT, "loaded: tensorboard")])
def test_tensorboard_is_loaded_only_where_it_is_asked_for_and_tensorflow_never(
    report: tuple[str, ...], loaded: str, tmp_path: Path
) -> None:
    """TensorFlow is installed here, as far as an import can tell."""
    stand_in = tmp_path / "installed" / "tensorflow.py"
    stand_in.parent.mkdir()
    stand_in.write_text("")
    path = os.pathsep.join(filter(None, [str(stand_in.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "train", *JOB, *report],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == loaded
    assert (tmp_path / "run/tensorboard").exists() is bool(report)


def test_importing_the_writer_is_quiet_and_loads_no_framework(tmp_path: Path) -> None:
    program = (
        "import qwen_local.training.tensorboard, sys\n"
        "print(*({'tensorflow', 'torch', 'mlx', 'transformers', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\n", b"")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            "ImportError(\"cannot import name 'runtime_version' from 'google.protobuf'\")",
            "ImportError: cannot import name 'runtime_version' from 'google.protobuf'",
        ),
        (
            "TypeError('Descriptors cannot be created directly.\\nIf this call came from')",
            "TypeError: Descriptors cannot be created directly.",
        ),
        ("AssertionError", "AssertionError"),
    ],
    ids=["protobuf too old", "protobuf too new", "no words"],
)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_tensorboard_that_cannot_be_imported_is_told_before_anything_is_written(
    command: str,
    raised: str,
    said: str,
    cli: Cli,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "tensorboard" or name == "qwen_local.training.tensorboard":
            monkeypatch.delitem(sys.modules, name)
    broken = tmp_path_factory.mktemp("broken")
    (broken / "tensorboard.py").write_text(f"raise {raised}\n")
    monkeypatch.syspath_prepend(broken)
    ended = cli(command, *JOB, *REPORT)
    assert (ended.code, ended.out, ended.err) == (
        2,
        "",
        f"train.report_to: tensorboard cannot be imported: {said}\n\n"
        "hint: pip install --upgrade tensorboard protobuf, or set train.report_to=[]\n",
    )
    assert list(tmp_path.iterdir()) == []
