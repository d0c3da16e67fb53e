"""Memory that runs out: the same work again with smaller micro-batches, nothing counted twice.

What runs out here is a fake, but for one test on PyTorch under a true limit. MLX has no such test:
on a Linux CPU it does not see that an allocation failed, and the process ends by a signal.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from qwen_local.backends.base import AdapterState, Backend, RowTooLargeError
from qwen_local.backends.cuda import engine as cuda
from qwen_local.backends.cuda import forward as cuda_forward
from qwen_local.backends.machine import Engine
from qwen_local.backends.mlx import engine as mlx
from qwen_local.backends.oom_retry import TokenBudget
from qwen_local.errors import OutOfMemoryError
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import ModelFiles
from qwen_local.rows.micro_batch import cut
from qwen_local.rows.planner import PADDED, Layout
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import Targets

pytestmark = pytest.mark.slow

BUDGET = 100
RATE = 1e-3

ROUNDING = 2e-6
"""Relative, of sums over a step, and of moments to the largest of their array. Another cut adds up
the same float32 numbers in another order: some units in the last place, 6e-8 each, twice that in a
square."""

OpenEngine = Callable[..., Backend]
MakeModel = Callable[[str, bool], ModelFiles]
MakeRows = Callable[..., Rows]

OUT_OF_MEMORY: dict[Engine, Exception] = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "mlx": RuntimeError("[malloc] Unable to allocate 2147483648 bytes."),
}


def let_fail(
    backend: Any,
    patch: pytest.MonkeyPatch,
    passes: Collection[int],
    *,
    where: str = "forward",
    error: Exception | None = None,
) -> None:
    """Let some of an engine's passes over a micro-batch fail.

    Args:
        backend: the engine.
        patch: takes it back.
        passes: which, counted from here on, those that are repeated too.
        where: after the `forward` of a micro-batch; in its `backward`, with some gradients summed
            up (MLX, which computes late, has only then computed what came before); or in a
            `block`, where every call of one counts, and those that recompute it.
        error: memory that ran out, if left out.
    """
    torch_engine = isinstance(backend, cuda.TorchBackend)
    error = error or OUT_OF_MEMORY["cuda" if torch_engine else "mlx"]
    count = itertools.count()

    def now() -> None:
        if next(count) in passes:
            raise type(error)(*error.args)  # each its own, with a traceback of its own

    if where == "backward" and torch_engine:
        parameter = backend._parameters[
            "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
        ]
        parameter.register_hook(lambda _: now())
        return
    owner: Any
    if where == "block" and torch_engine:
        owner, name = cuda_forward, "_block"
    elif where == "block":
        owner, name = type(backend._model.layers[0].self_attn), "__call__"
    else:
        owner, name = (mx, "async_eval") if where == "backward" else (backend, "_hidden")
    itself = getattr(owner, name)

    def failing(*args: Any, **named: Any) -> Any:
        if where == "block":  # before: PyTorch leaves a recomputation once it has what it needs
            now()
        result = itself(*args, **named)
        if where != "block":
            now()
        return result

    patch.setattr(owner, name, failing)


def micro_batches(rows: Rows, budget: int = BUDGET, layout: Layout = PADDED) -> int:
    return len(list(cut(rows, budget=budget, layout=layout)))


def step(backend: Backend, rows: Rows) -> tuple[float, float]:
    result = backend.step(rows, lr=RATE, tokens=rows.supervised)
    assert result.finite
    return result.loss_sum, result.grad_norm


def assert_same(a: AdapterState, b: AdapterState) -> None:
    """Bit for bit."""
    assert a.steps == b.steps
    for name in a.adapter:
        np.testing.assert_array_equal(a.adapter[name], b.adapter[name])
        np.testing.assert_array_equal(a.exp_avg[name], b.exp_avg[name])
        np.testing.assert_array_equal(a.exp_avg_sq[name], b.exp_avg_sq[name])


def random_states() -> tuple[list[int], list[list[int]]]:
    """Of the generators that belong to whoever calls an engine."""
    keys: Any = mx.random.state
    return torch.random.get_rng_state().tolist(), [np.array(key).tolist() for key in keys]


def same_up_to_rounding(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= ROUNDING * np.abs(b).max())


@pytest.mark.parametrize(
    ("where", "calls", "each", "checkpointing"),
    [
        ("forward", {"cuda": 1, "mlx": 1}, 1, False),
        ("backward", {"cuda": 1, "mlx": 1}, 1, False),
        # Three blocks twice for each micro-batch, on MLX the last but once; call 4 is a
        # recomputation, and so are others.
        ("block", {"cuda": 6, "mlx": 5}, 4, True),
    ],
)
def test_a_step_in_which_memory_runs_out_is_that_of_an_engine_with_half_the_budget(
    where: str,
    calls: dict[Engine, int],
    each: int,
    checkpointing: bool,
    engine: Engine,
    random_rows: MakeRows,
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = random_rows(16)
    half = open_engine(engine, micro_batch_tokens=BUDGET // 2, gradient_checkpointing=checkpointing)
    wanted = [step(half, rows) for _ in range(2)]
    count = micro_batches(rows, layout=half.layout)
    assert count > 2
    for at in range(0, count * calls[engine], each):
        backend = open_engine(
            engine, micro_batch_tokens=BUDGET, gradient_checkpointing=checkpointing
        )
        with monkeypatch.context() as patch:
            let_fail(backend, patch, [at], where=where)
            assert [step(backend, rows) for _ in range(2)] == wanted
        assert backend.micro_batch_tokens == BUDGET // 2
        assert_same(backend.state(), half.state())


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_update_is_the_one_without_it_up_to_rounding(
    where: str,
    engine: Engine,
    random_rows: MakeRows,
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the adapter only the norm: AdamW's first step is the sign of a gradient, nearly, and
    rounding decides that of a gradient that is nearly zero."""
    rows = random_rows(16)
    plain = open_engine(engine, micro_batch_tokens=BUDGET)
    start, wanted, expected = plain.adapter(), step(plain, rows), plain.state()
    for at in range(3):
        backend = open_engine(engine, micro_batch_tokens=BUDGET)
        with monkeypatch.context() as patch:
            let_fail(backend, patch, [at], where=where)
            assert step(backend, rows) == pytest.approx(wanted, rel=ROUNDING)
        found = backend.state()
        for name, array in expected.exp_avg.items():
            assert same_up_to_rounding(found.exp_avg[name], array)
            assert same_up_to_rounding(found.exp_avg_sq[name], expected.exp_avg_sq[name])
        moved = sum(np.square(expected.adapter[n] - start[n]).sum() for n in start)
        apart = sum(np.square(expected.adapter[n] - found.adapter[n]).sum() for n in start)
        assert np.sqrt(apart / moved) < 1e-4


def test_memory_that_runs_out_again_halves_again(
    engine: Engine,
    random_rows: MakeRows,
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = random_rows(16)
    quarter = open_engine(engine, micro_batch_tokens=BUDGET // 4)
    backend = open_engine(engine, micro_batch_tokens=BUDGET)
    let_fail(backend, monkeypatch, [1, 4])  # the second of four, and then the third
    assert step(backend, rows) == step(quarter, rows)
    assert backend.micro_batch_tokens == BUDGET // 4
    assert_same(backend.state(), quarter.state())


def test_scores_are_counted_once_wherever_memory_runs_out(
    engine: Engine,
    random_rows: MakeRows,
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = random_rows(16)
    half = open_engine(engine, micro_batch_tokens=BUDGET // 2).score(rows)
    whole = open_engine(engine, micro_batch_tokens=BUDGET).score(rows)
    np.testing.assert_allclose(half.nll_R, whole.nll_R, rtol=ROUNDING)
    for at in range(3):
        backend = open_engine(engine, micro_batch_tokens=BUDGET)
        with monkeypatch.context() as patch:
            let_fail(backend, patch, [at])
            found = backend.score(rows)
        np.testing.assert_array_equal(found.nll_R, half.nll_R)
        np.testing.assert_array_equal(found.tokens_R, whole.tokens_R)
        assert backend.micro_batch_tokens == BUDGET // 2


@pytest.mark.parametrize("doing", ["step", "warm_up", "score"])
def test_a_row_too_large_is_named_and_the_engine_is_as_before(
    doing: str,
    engine: Engine,
    random_rows: MakeRows,
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = random_rows(16)
    backend, other = (open_engine(engine, micro_batch_tokens=BUDGET) for _ in range(2))
    step(backend, rows)
    step(other, rows)
    with monkeypatch.context() as patch:
        let_fail(backend, patch, range(100))
        with pytest.raises(RowTooLargeError) as raised:
            if doing == "step":
                step(backend, rows)
            else:
                getattr(backend, doing)(rows)
    longest = int(rows.lengths_R.argmax())
    assert (raised.value.row, raised.value.length) == (longest, rows.lengths_R[longest])
    assert raised.value.__context__ is None  # which would hold what was to be freed
    assert_same(backend.state(), other.state())
    assert step(backend, rows) == pytest.approx(step(other, rows), rel=ROUNDING)


def test_where_memory_runs_out_in_the_update_the_run_ends(
    engine: Engine,
    random_rows: MakeRows,
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend: Any = open_engine(engine)

    def fail(*_: object) -> None:
        raise OUT_OF_MEMORY[engine]

    def stumble(*_: object) -> None:
        raise KeyError("no such key")

    name = "step" if engine == "cuda" else "apply_gradients"
    monkeypatch.setattr(backend._optimizer, name, fail)
    with pytest.raises(OutOfMemoryError, match="out of memory in the update itself"):
        step(backend, random_rows(4))
    monkeypatch.setattr(backend._optimizer, name, stumble)
    with pytest.raises(KeyError):
        step(backend, random_rows(4))


def test_another_error_passes_and_leaves_nothing_behind(
    engine: Engine,
    random_rows: MakeRows,
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = random_rows(16)
    backend, other = (open_engine(engine, micro_batch_tokens=BUDGET) for _ in range(2))
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with monkeypatch.context() as patch:
        let_fail(backend, patch, [2], error=error)
        with pytest.raises(RuntimeError) as raised:
            step(backend, rows)
    assert str(raised.value) == "mat1 and mat2 shapes cannot be multiplied"
    assert backend.micro_batch_tokens == BUDGET
    assert step(backend, rows) == step(other, rows)
    assert_same(backend.state(), other.state())


@pytest.mark.parametrize("doing", ["step", "score"])
def test_what_a_failed_pass_held_is_free_before_the_work_begins_again(
    doing: str,
    engine: Engine,
    random_rows: MakeRows,
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = random_rows(16)
    backend: Any = open_engine(engine, micro_batch_tokens=BUDGET)
    step(backend, rows)
    held: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    memory: list[int] = []
    hidden, error = backend._hidden, OUT_OF_MEMORY[engine]

    def failing(*args: Any) -> Any:
        alive.extend(reference() is not None for reference in held)
        memory.append(mx.get_active_memory())
        result = hidden(*args)
        if not held:
            mx.eval(result if engine == "mlx" else [])
            held.append(weakref.ref(result))
            raise type(error)(*error.args)
        return result

    monkeypatch.setattr(backend, "_hidden", failing)
    if doing == "step":
        step(backend, rows)
    else:
        backend.score(rows)
    assert alive and not any(alive)
    assert memory[1] < memory[0] + 2**15  # of MLX; on a CPU that of PyTorch is not counted


def test_a_rehearsal_changes_nothing_but_what_is_allocated(
    engine: Engine, random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    rows = random_rows(16)
    lora = LoraSpec(rank=8, dropout=0.1)
    backend, other = (open_engine(engine, lora=lora, micro_batch_tokens=BUDGET) for _ in range(2))
    generators = random_states()
    before = backend.state()
    curves: list[list[tuple[float, float]]] = [[], []]
    for part in (rows, rows.take(range(8)), rows.take(range(8, 16))):
        backend.warm_up(rows)
        curves[0].append(step(backend, part))
        curves[1].append(step(other, part))
    assert curves[0] == curves[1]
    assert_same(backend.state(), other.state())
    assert random_states() == generators
    fresh = open_engine(engine, lora=lora)
    assert_same(fresh.state(), before)
    fresh.warm_up(rows)
    assert_same(fresh.state(), before)


def test_a_rehearsal_finds_the_budget_of_the_steps_after_it(
    engine: Engine,
    random_rows: MakeRows,
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = random_rows(16)
    backend = open_engine(engine, micro_batch_tokens=BUDGET)
    half = open_engine(engine, micro_batch_tokens=BUDGET // 2)
    let_fail(backend, monkeypatch, [1], where="backward")
    backend.warm_up(rows)
    assert backend.micro_batch_tokens == BUDGET // 2
    assert step(backend, rows) == step(half, rows)
    assert_same(backend.state(), half.state())


def test_a_first_step_after_a_rehearsal_allocates_nothing_that_lasts(
    engine: Engine, random_rows: MakeRows, open_engine: OpenEngine
) -> None:
    rows = random_rows(16)
    backend: Any = open_engine(engine)
    backend.warm_up(rows)
    if engine == "cuda":
        assert backend._gradients() == []
        arrays = list(map(id, backend._optimizer.state.values()))
        assert len(arrays) == len(backend.adapter())
        step(backend, rows)
        assert list(map(id, backend._optimizer.state.values())) == arrays
    else:
        before = mx.get_active_memory()
        step(backend, rows)
        backend.warm_up(rows)  # until then the model still has the adapter before the update
        lasting = mx.get_active_memory() - before
        # Some scraps are freed a moment later; the moments would be twice the adapter.
        assert lasting < 0.5 * sum(array.nbytes for array in backend.adapter().values())


@pytest.mark.parametrize(
    ("ran_out", "error", "counts"),
    [
        (cuda.ran_out_of_memory, torch.OutOfMemoryError("CUDA out of memory."), True),
        (cuda.ran_out_of_memory, RuntimeError("CUDA error: out of memory\nCUDA kernel"), True),
        (cuda.ran_out_of_memory, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), True),
        (cuda.ran_out_of_memory, MemoryError(), True),
        (cuda.ran_out_of_memory, RuntimeError("CUDA error: an illegal memory access"), False),
        (cuda.ran_out_of_memory, ValueError("out of memory"), False),
        (mlx.ran_out_of_memory, RuntimeError("[malloc] Unable to allocate 8 bytes."), True),
        (mlx.ran_out_of_memory, RuntimeError("[malloc_or_wait] Unable to allocate 8"), True),
        (mlx.ran_out_of_memory, RuntimeError("[metal::malloc] Resource limit (4) exceeded."), True),
        (mlx.ran_out_of_memory, RuntimeError("std::bad_alloc"), True),
        (mlx.ran_out_of_memory, RuntimeError("[METAL] ... failed: Insufficient Memory (8)"), True),
        (mlx.ran_out_of_memory, MemoryError(), True),
        (mlx.ran_out_of_memory, RuntimeError("[METAL] ... Impacting Interactivity (e)"), True),
        (mlx.ran_out_of_memory, ValueError("[matmul] Last dimension of first input"), False),
    ],
)
def test_what_counts_as_out_of_memory(
    ran_out: Callable[[Exception], bool], error: Exception, counts: bool
) -> None:
    assert ran_out(error) is counts


def test_an_allocation_that_no_machine_grants_counts_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 58)
    assert cuda.ran_out_of_memory(raised.value)


def of_lengths(*lengths: int) -> Rows:
    return Rows.from_pairs(([1] * n, Targets.of([1] * n)) for n in lengths)


@pytest.mark.parametrize(
    ("lengths", "budget", "at", "after"),
    [
        ([9, 4, 4, 3], 8, 1, 4),  # 2 x 4
        ([4, 4, 4], 1000, 0, 7),  # 1000, 500, ... until three rows of four are too many
        ([4, 4, 4], 8, 1, 4),  # one row found no room after two: they are cut first
        ([1, 1], 2, 0, 1),
    ],
)
def test_the_budget_is_halved_until_the_largest_micro_batch_so_far_is_smaller(
    lengths: list[int], budget: int, at: int, after: int
) -> None:
    failing = iter([at])

    def work(batches: Iterator[Any]) -> int:
        last = next(failing, None)
        for number, _ in enumerate(batches):
            if number == last:
                raise MemoryError
        return number + 1

    limit = TokenBudget(budget, ran_out=lambda error: isinstance(error, MemoryError))
    again = limit.run(of_lengths(*lengths), work, free=lambda: None)
    assert limit.tokens == after
    assert again == micro_batches(of_lengths(*lengths), after)


@pytest.mark.parametrize(("lengths", "budget", "row"), [([3, 9, 4, 4], 8, 1), ([2, 5], 5, 1)])
def test_a_row_alone_that_does_not_fit_ends_the_work(
    lengths: list[int], budget: int, row: int
) -> None:
    calls = []

    def work(batches: Iterator[Any]) -> None:
        next(batches)
        raise MemoryError

    limit = TokenBudget(budget, ran_out=lambda error: isinstance(error, MemoryError))
    with pytest.raises(RowTooLargeError) as raised:
        limit.run(of_lengths(*lengths), work, free=lambda: calls.append("let go"))
    assert (raised.value.row, raised.value.length) == (row, lengths[row])
    assert (limit.tokens, calls) == (budget, ["let go"])


CHILD = """
import resource, sys
import numpy as np, torch
from qwen_local.backends.base import Setup
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import fetch, find_model
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import Targets

torch.set_num_threads(1)  # those that come later could not get a stack
ids = np.load(sys.argv[2])
rows = Rows.from_pairs((row[:-1], Targets.of(row[1:])) for row in ids)
engine = open_backend(
    Choice("cuda", "cpu", "a test"),
    Setup(
        model=fetch(find_model(sys.argv[1])),
        lora=LoraSpec(rank=8, dropout=0.0),
        device="cpu",
        dtype="float32",
        max_grad_norm=1.0,
        micro_batch_tokens=16_000,
    ),
)
engine.warm_up(rows.take([0]))
with open("/proc/self/statm") as file:
    limit = int(file.read().split()[0]) * resource.getpagesize() + 100 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
result = engine.step(rows, lr=1e-3, tokens=rows.supervised)
print(engine.micro_batch_tokens, result.loss_sum, result.grad_norm, engine.score(rows).mean)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to RLIMIT_AS")
def test_a_true_limit_of_memory_is_lived_with(
    random_model: MakeModel, open_engine: OpenEngine, tmp_path: Path
) -> None:
    """PyTorch under `RLIMIT_AS`: 16,000 positions take 400 MB, and 100 are left."""
    ids = np.random.default_rng(0).integers(2, 300, (64, 251))
    np.save(tmp_path / "ids.npy", ids)
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, random_model("qwen3", True).folder, tmp_path / "ids.npy"],
        capture_output=True,
        text=True,
        check=True,
    )
    budget, *found = map(float, ran.stdout.split())
    rows = Rows.from_pairs((row[:-1], Targets.of(row[1:])) for row in ids)
    plain = open_engine("cuda", micro_batch_tokens=16_000)
    assert budget < 16_000
    assert found == pytest.approx([*step(plain, rows), plain.score(rows).mean], rel=ROUNDING)
