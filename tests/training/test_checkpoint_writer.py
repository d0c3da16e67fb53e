"""Which checkpoints stay, and when `adapter/` is written: with an engine of one number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from qwen_local.adapters.lora import Adapter
from qwen_local.backends.base import AdapterState, Arrays, Backend
from qwen_local.job.schema import LoraSpec
from qwen_local.models.families.family import Sizes
from qwen_local.models.families.qwen3 import QWEN3
from qwen_local.runs import checkpoints
from qwen_local.runs.events import AdapterEvent, CheckpointEvent, EventWriter, read_events
from qwen_local.runs.state import Execution, Identity, TrainState, from_files
from qwen_local.training.checkpoint_writer import CheckpointWriter

BLOCKS = QWEN3.architecture(
    Sizes(hidden=1, intermediate=1, heads=1, kv_heads=1, head_dim=1),
    layers=1,
    vocabulary=1,
    tied=True,
    rope_theta=1e4,
    positions=8,
).blocks
NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
IDENTITY = Identity(job={}, rows="r", eval_rows=None, sources=(), base="b", base_commit=None)
EXECUTION = Execution(
    backend="cuda",
    device="cpu",
    dtype="float32",
    available=1,
    micro_batch_tokens=64,
    gradient_checkpointing=False,
    cuda_graphs=False,
)


class OneNumber:
    """The engine, as far as a writer uses it."""

    micro_batch_tokens = 32

    def __init__(self) -> None:
        self.step = 0

    def state(self) -> AdapterState:
        arrays = {NAME: np.full((1, 2), self.step, np.float32)}
        return AdapterState(arrays, arrays, arrays, self.step)


class Run:
    """A run's folder, written step by step."""

    def __init__(self, folder: Path, events: EventWriter, *, keep: int) -> None:
        self.folder, self.engine = folder, OneNumber()
        backend = cast(Backend, self.engine)
        self.writer = CheckpointWriter(
            folder, backend, adapter, IDENTITY, EXECUTION, events, keep=keep
        )

    def save(self, step: int, best: int) -> None:
        self.engine.step = step
        self.writer.save(TrainState(step=step, best_step=best))

    @property
    def steps(self) -> list[int]:
        return sorted(checkpoints.steps_in(self.folder / "checkpoints"))

    @property
    def adapter_of(self) -> float:
        from safetensors.numpy import load_file

        path = self.folder / "adapter/peft/adapter_model.safetensors"
        return float(load_file(path)[NAME][0, 0])


def adapter(arrays: Arrays) -> Adapter:
    return Adapter(
        base="m", lora=LoraSpec(rank=1, targets=("q_proj",)), blocks=BLOCKS, arrays=arrays
    )


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with EventWriter(tmp_path / "metrics.jsonl") as events:
        yield Run(tmp_path, events, keep=2)


def test_the_newest_stay_and_the_best_that_each_of_them_knows(run: Run) -> None:
    for step, best, stay in (
        (1, 1, [1]),
        (2, 1, [1, 2]),
        (3, 1, [1, 2, 3]),
        (4, 1, [1, 3, 4]),
        (5, 5, [1, 4, 5]),  # 4 still knows 1 as its best
        (6, 5, [5, 6]),
        (7, 5, [5, 6, 7]),
        (8, 5, [5, 7, 8]),
    ):
        run.save(step, best)
        assert run.steps == stay


def test_the_adapter_is_written_when_it_is_the_best(run: Run) -> None:
    for step, best, written in ((1, 1, 1), (2, 1, 1), (3, 3, 3), (4, 3, 3)):
        run.save(step, best)
        assert run.adapter_of == written
    assert list(read_events(run.folder / "metrics.jsonl")) == [
        CheckpointEvent(step=1),
        AdapterEvent(step=1),
        CheckpointEvent(step=2),
        CheckpointEvent(step=3),
        AdapterEvent(step=3),
        CheckpointEvent(step=4),
    ]


def test_a_run_that_resumes_writes_the_adapter_of_its_best_again(run: Run) -> None:
    run.save(1, 1)
    run.save(2, 2)  # the adapter of a step that the run goes back behind
    run.writer.restore_adapter(TrainState(step=1, best_step=1))
    assert run.adapter_of == 1


def test_a_run_that_resumes_removes_what_need_not_stay(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "metrics.jsonl") as events:
        keeping = {keep: Run(tmp_path, events, keep=keep) for keep in (3, 1)}
        for step in (1, 2, 3):
            keeping[3].save(step, 2)
        keeping[1].writer.restore_adapter(TrainState(step=3, best_step=2))
    assert keeping[1].steps == [2, 3]


def test_a_best_that_is_damaged_is_reported_and_the_adapter_stays(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.save(1, 1)
    run.save(2, 1)
    (run.folder / "checkpoints/step-000001/progress.json").unlink()
    with caplog.at_level("INFO", logger="qwen_local"):
        run.writer.restore_adapter(TrainState(step=2, best_step=1))
    assert caplog.messages == [
        "warning: the checkpoint of the best step, 1, is damaged (progress.json: no such file or "
        f"directory); {run.folder}/adapter stays as it is"
    ]
    assert run.adapter_of == 1


def test_a_checkpoint_says_with_which_budget_it_was_computed_and_gives_back_its_state(
    run: Run,
) -> None:
    run.save(3, 3)
    saved = from_files(checkpoints.read(run.folder / "checkpoints/step-000003"))
    assert saved.execution.micro_batch_tokens == 32
    assert saved.identity == IDENTITY
    assert (saved.state.step, saved.adapter_state.steps) == (3, 3)
    for arrays in (
        saved.adapter_state.adapter,
        saved.adapter_state.exp_avg,
        saved.adapter_state.exp_avg_sq,
    ):
        assert arrays[NAME].tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("progress.json", "[]", "progress.json: not what this version writes"),
        ("progress.json", '{"step": 3}', "progress.json: not what this version writes"),
        ("optimizer.safetensors", "", "optimizer.safetensors: not what this version writes"),
    ],
)
def test_files_that_verify_and_yet_are_no_checkpoint_are_damaged(
    run: Run, name: str, content: str, problem: str
) -> None:
    run.save(3, 3)
    files: dict[str, Any] = checkpoints.read(run.folder / "checkpoints/step-000003")
    with pytest.raises(checkpoints.DamagedError, match=problem):
        from_files({**files, name: content.encode()})


def test_numbers_that_are_not_finite_are_no_checkpoint(run: Run) -> None:
    from qwen_local.files import array_bytes

    run.save(3, 3)
    files = checkpoints.read(run.folder / "checkpoints/step-000003")
    bad = array_bytes({NAME: np.array([[np.nan, 0]], np.float32)}, made_for="pt")
    with pytest.raises(checkpoints.DamagedError, match="contains numbers"):
        from_files({**files, "adapter_model.safetensors": bad})
    assert json.loads(files["progress.json"])["step"] == 3
