"""Micro-batches of few shapes, and their passes as CUDA graphs.

Without a card a made-up one stands in for `torch.cuda`: it records what a pass would do and does it
when the graph is replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen_local.backends.base import Setup
from qwen_local.backends.cuda import graphs as module
from qwen_local.backends.cuda.constants import SIZES_PER_OCTAVE, SMALLEST
from qwen_local.backends.cuda.engine import TorchBackend
from qwen_local.backends.cuda.graphs import Graphs
from qwen_local.backends.cuda.inputs import Inputs, padded
from qwen_local.errors import BackendError
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import ModelFiles
from qwen_local.rows.micro_batch import MicroBatch, cut
from qwen_local.rows.planner import PACKED
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import IGNORE
from tests.conftest import MakeModel, MakeRows

pytestmark = pytest.mark.slow


def micro_batch(rows: Rows) -> MicroBatch:
    (batch,) = cut(rows, budget=rows.tokens, layout=PACKED)
    return batch


# --- shapes ---


@pytest.mark.parametrize("count", [1, 3, 7, 8, 40])
def test_padding_adds_a_row_of_its_own_and_nothing_that_counts(
    count: int, random_rows: MakeRows
) -> None:
    batch = micro_batch(random_rows(count))
    made, longest = padded(batch)
    positions, kept = batch.ids_BW.shape[1], len(batch.targets)
    assert made.ids_BW.shape[1] == sum(made.lengths) <= max(SMALLEST, positions * 1.25)
    np.testing.assert_array_equal(made.ids_BW[:, :positions], batch.ids_BW)
    assert made.lengths[:count] == batch.lengths
    assert sum(made.lengths[:count]) == positions  # padding is a row of its own
    assert longest >= max(made.lengths)
    np.testing.assert_array_equal(made.positions_N[:kept], batch.positions_N)
    assert set(made.targets.ids_T[kept:].tolist()) <= {IGNORE}
    assert set(made.positions_N[kept:].tolist()) <= {0}


def test_shapes_are_few(random_rows: MakeRows) -> None:
    shapes = set()
    for seed in range(40):
        batch, longest = padded(micro_batch(random_rows(8, seed=seed)))
        shapes.add(Inputs.of(batch, torch.from_numpy, longest=longest).shape)
    assert len(shapes) <= 3 * SIZES_PER_OCTAVE  # of 40: tokens span an octave, and targets another


def opened(model: ModelFiles, **given: Any) -> TorchBackend:
    lora = LoraSpec(rank=4, alpha=8, dropout=given.pop("dropout", 0.0))
    setup = Setup(**{"model": model, "lora": lora, "device": "cpu", "dtype": "float32", **given})
    engine = TorchBackend(setup)
    generator = np.random.default_rng(0)
    engine.load_adapter(  # with B = 0 there would be no gradient of A
        {n: generator.normal(0, 0.05, v.shape).astype("f4") for n, v in engine.adapter().items()}
    )
    return engine


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("budget", [4096, 40])
def test_a_padded_step_is_that_of_the_rows_alone(
    family: str, budget: int, random_model: MakeModel, random_rows: MakeRows
) -> None:
    rows = random_rows(9)
    model = random_model(family, True)
    plain, few = (
        opened(model, micro_batch_tokens=budget, cuda_graphs=graphs) for graphs in (False, True)
    )
    for _ in range(3):
        wanted, found = (e.step(rows, lr=1e-2, tokens=rows.supervised) for e in (plain, few))
        assert found.loss_sum == pytest.approx(wanted.loss_sum, rel=1e-6)
        assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-5)
    for name, array in plain.state().exp_avg.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(few.state().exp_avg[name] / scale, array / scale, atol=2e-5)
    np.testing.assert_allclose(few.score(rows).nll_R, plain.score(rows).nll_R, rtol=1e-5)


def test_a_padded_step_with_dropout_is_the_same_every_time(
    random_model: MakeModel, random_rows: MakeRows
) -> None:
    rows = random_rows(5)
    model = random_model("qwen3", True)
    first, second = (
        opened(model, dropout=0.2, cuda_graphs=True).step(rows, lr=1e-2, tokens=rows.supervised)
        for _ in range(2)
    )
    assert first == second


# --- graphs ---


class FakeGraph:
    """Records passes instead of kernels."""

    recording: FakeGraph | None = None
    made = 0
    broken = False
    """The recording cannot be ended."""

    def __init__(self) -> None:
        self.passes: list[Callable[[], None]] = []
        FakeGraph.made += 1

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        FakeGraph.recording = self

    def capture_end(self) -> None:
        FakeGraph.recording = None
        if FakeGraph.broken:
            raise RuntimeError("CUDA error: operation failed due to a previous error\nmore")

    def replay(self) -> None:
        for work in self.passes:
            work()


class Card:
    """A pass that adds what it is given to one gradient, on a card that is made up."""

    def __init__(self) -> None:
        self.gradient = torch.zeros(3)
        self.launched = 0
        self.fails: Exception | None = None
        self.error = 0.0
        """What a replay adds beside what the pass adds."""

    def work(self, inputs: Inputs) -> Tensor:
        loss = torch.zeros(())

        def launch(error: float = 0.0) -> None:
            part = inputs.ids_T.float().sum()
            self.gradient += part + error
            loss.copy_(part)

        if FakeGraph.recording is None:
            self.launched += 1
            launch()
        elif self.fails is not None:
            raise self.fails
        else:
            FakeGraph.recording.passes.append(lambda: launch(self.error))
        return loss


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    @contextmanager
    def on_stream(_: object) -> Iterator[None]:
        yield

    class Stream:
        def wait_stream(self, _: object) -> None: ...

    monkeypatch.setattr(FakeGraph, "made", 0)
    monkeypatch.setattr(FakeGraph, "broken", False)
    for name, value in {
        "CUDAGraph": FakeGraph,
        "graph_pool_handle": object,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": on_stream,
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return Card()


def inputs(rows: Rows) -> Inputs:
    return Inputs.of(micro_batch(rows), torch.from_numpy)


def test_a_shape_is_recorded_when_it_comes_again_and_replayed_after(
    card: Card, random_rows: MakeRows
) -> None:
    graphs = Graphs(card.work, lambda: [card.gradient])
    given = [inputs(random_rows(3, seed=0)) for _ in range(5)]
    for number, one in enumerate(given):
        one.ids_T.copy_(torch.arange(len(one.ids_T)) * number)
    expected = 0.0
    for number, one in enumerate(given):
        loss = graphs.run(one, seed=number)
        expected += float(one.ids_T.sum())
        assert float(loss) == float(one.ids_T.sum())  # of these tokens, not of those recorded
        assert card.gradient.tolist() == [expected] * 3
    assert (card.launched, FakeGraph.made) == (2, 1)


def test_each_shape_has_a_graph_of_its_own_until_there_are_enough(
    card: Card, random_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_GRAPHS", 2)
    graphs = Graphs(card.work, lambda: [card.gradient])
    for _ in range(3):
        for count in (1, 2, 3):
            graphs.run(inputs(random_rows(count, seed=0)), seed=0)
    assert FakeGraph.made == 2
    assert card.launched == 3 + 3 + 1


def test_a_graph_that_is_not_right_is_not_used(
    card: Card, random_rows: MakeRows, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = Graphs(card.work, lambda: [card.gradient])
    card.error = 1000.0
    one = inputs(random_rows(3))
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            graphs.run(one, seed=0)
    assert card.gradient.tolist() == [4 * float(one.ids_T.sum())] * 3
    assert (card.launched, FakeGraph.made, graphs.on) == (4, 1, False)
    (message,) = caplog.messages
    assert message.startswith("CUDA graphs are off for this process: gradients differ by ")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_pass_that_cannot_be_recorded_is_launched_as_before(
    error: type[Exception],
    card: Card,
    random_rows: MakeRows,
    caplog: pytest.LogCaptureFixture,
) -> None:
    graphs = Graphs(card.work, lambda: [card.gradient])
    card.fails = error("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
    one = inputs(random_rows(3))
    for _ in range(4):
        graphs.run(one, seed=0)
    assert card.gradient.tolist() == [4 * float(one.ids_T.sum())] * 3
    assert (card.launched, FakeGraph.made) == (4, 1)
    assert caplog.messages == [
        "CUDA graphs are off for this process: recording failed: CUDA out of memory. Tried to "
        "allocate 2 GiB."
    ]


def test_a_recording_that_cannot_be_ended_ends_the_run_with_a_hint(
    card: Card, random_rows: MakeRows
) -> None:
    """PyTorch's allocator and generator would stay in the state of a recording."""
    graphs = Graphs(card.work, lambda: [card.gradient])
    card.fails, FakeGraph.broken = RuntimeError("not permitted while capturing"), True
    one = inputs(random_rows(3))
    graphs.run(one, seed=0)
    with pytest.raises(BackendError) as caught:
        graphs.run(one, seed=0)
    assert str(caught.value) == (
        "train.cuda_graphs: recording a pass failed: not permitted while capturing\n\n"
        "hint: set it to false"
    )


def test_a_pass_that_is_not_finite_says_nothing_about_its_graph(
    card: Card, random_rows: MakeRows
) -> None:
    graphs = Graphs(card.work, lambda: [card.gradient])
    one = inputs(random_rows(3))
    card.gradient.fill_(float("nan"))
    for _ in range(2):
        graphs.run(one, seed=0)
    assert graphs.on
    card.gradient.zero_()
    for _ in range(3):
        graphs.run(one, seed=0)
    assert card.gradient.tolist() == [3 * float(one.ids_T.sum())] * 3
    assert (card.launched, FakeGraph.made) == (3, 2)


def test_graphs_that_are_forgotten_are_recorded_anew(card: Card, random_rows: MakeRows) -> None:
    graphs = Graphs(card.work, lambda: [card.gradient])
    one = inputs(random_rows(3))
    for _ in range(3):
        graphs.run(one, seed=0)
    graphs.clear()
    for _ in range(3):
        graphs.run(one, seed=0)
    assert (card.launched, FakeGraph.made) == (4, 2)
