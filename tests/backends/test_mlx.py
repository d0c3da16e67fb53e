"""What is MLX's own: the compiled step that a Mac runs, and a machine without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from qwen_local.backends.base import Setup
from qwen_local.backends.mlx.engine import MlxBackend, keep_buffers, keep_wired, with_few_shapes
from qwen_local.backends.mlx.head import _exp, loss_and_gradient
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import ModelFiles
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import IGNORE, Targets
from qwen_local.runs.curves import largest_difference

pytestmark = pytest.mark.slow


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles with g++ on a CPU")
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_compiled_step_is_the_plain_step(
    dropout: float,
    random_model: Callable[[str, bool], ModelFiles],
    random_rows: Callable[..., Rows],
) -> None:
    """Padded widths, padded positions, one compilation for all: the same losses."""
    rows = random_rows(32, longest=40)
    curves = []
    for few_shapes in (False, True):
        setup = Setup(
            model=random_model("qwen3", True),
            lora=LoraSpec(rank=8, dropout=dropout),
            device="cpu",
            dtype="float32",
            max_grad_norm=1.0,
            micro_batch_tokens=100,
        )
        backend = MlxBackend(setup, few_shapes=few_shapes)
        losses = []
        for start in [0, 8, 16, 24] * 3:
            batch = rows.take(range(start, start + 8))
            result = backend.step(batch, lr=1e-3, tokens=batch.supervised)
            losses.append(result.loss_sum / batch.supervised)
        curves.append([*losses, backend.score(rows).mean])
    # Dropout draws by shape: with the widths padded, only the law of the masks is the same.
    assert largest_difference(*curves) <= (1e-5 if dropout == 0.0 else 2e-2)
    assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-6)  # B = 0: dropout acts on nothing


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles with g++ on a CPU")
def test_the_compiled_step_draws_new_masks_each_step_and_the_same_ones_each_run(
    random_model: Callable[[str, bool], ModelFiles], random_rows: Callable[..., Rows]
) -> None:
    rows = random_rows(8)
    runs = []
    for _ in range(2):
        setup = Setup(
            model=random_model("qwen3", True),
            lora=LoraSpec(rank=8, dropout=0.4),
            device="cpu",
            dtype="float32",
        )
        backend = MlxBackend(setup, few_shapes=True)
        backend.step(rows, lr=1e-2, tokens=rows.supervised)
        still = [backend.step(rows, lr=0.0, tokens=rows.supervised).loss_sum for _ in range(3)]
        assert len(set(still)) == 3  # nothing moves but the masks
        runs.append(still)
    assert runs[0] == runs[1]


def test_few_shapes_are_few_and_say_the_same() -> None:
    generator = np.random.default_rng(0)
    shapes = set()
    for _ in range(1000):
        rows, width = int(generator.integers(1, 9)), int(generator.lognormal(5, 0.6)) + 2
        ids = generator.integers(1, 9, (rows, width)).astype(np.int32)
        positions = np.sort(generator.choice(rows * width, rows, replace=False))
        padded, moved, targets = with_few_shapes(ids, positions, Targets.of(np.arange(rows)))
        shapes.add((padded.shape, moved.shape))
        np.testing.assert_array_equal(padded[:rows, :width], ids)
        np.testing.assert_array_equal(padded.ravel()[moved[:rows]], ids.ravel()[positions])
        assert targets.ids_T.tolist() == [*range(rows), *[IGNORE] * (len(targets) - rows)]
        assert padded.shape[1] <= max(32, 1.25 * width)
    assert len(shapes) <= 120


def test_supervised_positions_are_padded_to_few_counts_with_little_waste() -> None:
    """Micro-batches of four answers of 8 to 300 words, lognormal."""
    generator = np.random.default_rng(0)
    answers = np.clip(generator.lognormal(4.2, 0.8, (1000, 4)), 8, 300).astype(int).sum(1)
    counts = []
    for count in answers.tolist():
        ids = np.ones((1, count), np.int32)
        _, positions, targets = with_few_shapes(ids, np.arange(count), Targets.of(np.arange(count)))
        assert len(positions) == len(targets)
        counts.append(len(targets))
    assert len(set(counts)) <= 16
    assert sum(counts) <= 1.13 * answers.sum()


@pytest.mark.parametrize(
    ("said", "wired"),
    [({"max_recommended_working_set_size": 5 << 30}, [5 << 30]), ({"device_name": "cpu"}, [])],
)
def test_memory_is_wired_as_far_as_a_device_recommends(
    said: dict[str, object], wired: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []
    monkeypatch.setattr(mx, "device_info", lambda: said)
    monkeypatch.setattr(mx, "set_wired_limit", limits.append)
    keep_wired()
    assert limits == wired


@pytest.mark.parametrize(
    ("said", "weights", "kept"),
    [
        ({"max_recommended_working_set_size": 18 << 30}, 2 << 30, [8 << 30]),
        ({"max_recommended_working_set_size": 18 << 30}, 16 << 30, [2 << 30]),  # the least
        ({"device_name": "cpu"}, 0, []),
    ],
)
def test_freed_buffers_are_kept_in_half_of_what_the_weights_leave(
    said: dict[str, object], weights: int, kept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []
    monkeypatch.setattr(mx, "device_info", lambda: said)
    monkeypatch.setattr(mx, "get_active_memory", lambda: weights)
    monkeypatch.setattr(mx, "set_cache_limit", limits.append)
    keep_buffers()
    assert limits == kept


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradients_hold_a_vocabulary_of_equal_odds(dtype: str) -> None:
    """The exponentials of 151,936 equal logits add up to more than float16 can hold."""
    half = getattr(mx, dtype)
    weight = mx.zeros((151_936, 2), half).at[3].add(1)
    nll, gradient = loss_and_gradient(
        mx.zeros((1, 2), half), lambda h: h @ weight.T, lambda g: g.astype(half) @ weight,
        {"ids": mx.array([3])}, 64,
    )  # fmt: skip
    assert nll.item() == pytest.approx(np.log(151_936), rel=1e-5)
    assert gradient.tolist() == [[-1.0, -1.0]]


@pytest.mark.parametrize("machine", ["x86_64", "arm64"])
def test_the_exponential_of_either_processor_is_that_of_float64(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    values = np.concatenate([np.linspace(-80, 0, 1000), [-1e4, -np.inf]]).astype(np.float32)
    found = np.array(_exp(mx.array(values)), np.float64)
    np.testing.assert_allclose(found, np.exp(values.astype(np.float64)), rtol=4e-6, atol=1e-38)


def test_the_head_holds_the_logits_of_a_few_chunks_however_many_there_are() -> None:
    def peak(chunks: int) -> int:
        hidden, weight = mx.ones((chunks * 32, 8)), mx.ones((4096, 8))
        targets = {"ids": mx.zeros(chunks * 32, mx.int32)}
        mx.eval(hidden, weight, targets)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        head, back = lambda h: h @ weight.T, lambda g: g @ weight
        mx.eval(loss_and_gradient(hidden, head, back, targets, 32))
        return mx.get_peak_memory() - before

    assert peak(32) < 2 * peak(4)


def test_a_machine_without_a_compiler_runs_mlx_all_the_same(tmp_path: Path) -> None:
    program = (
        "from qwen_local.cli import main; import sys; "
        "sys.argv = ['qwen-local', 'generate', '--backend', 'mlx', '--device', 'cpu', "
        "'--model', 'qwen-local/tiny', '--prompt', 'What colour is the sky?']; main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PATH": str(tmp_path), "TMPDIR": str(tmp_path)},  # nothing compiled yet
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "The sky is blue.\n"
