"""What must agree on any engine and device, as checks: each a figure with its bound.

The embedded model on its own sample data: it was trained, so that its losses mean something, and it
loads in a moment. `benchmarks.gpu` and `benchmarks.metal` ask these of a card or a Mac.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.parts import Device, Figure, check, ratio, relative, unless_zero
from qwen_local.backends.base import Arrays, Backend, Setup
from qwen_local.backends.machine import Engine
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from qwen_local.embedded import TINY_MODEL, sample_data_path, tiny_model_path
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import fetch, find_model
from qwen_local.rows.rows import Rows
from qwen_local.rows.scores import Scores
from qwen_local.runs.curves import largest_difference

STEPS = 20
BATCH = 8
RATE = 1e-3
WHOLE_BATCH = 16_384
"""Tokens of a micro-batch that hold all rows of any step here."""
ONE_ROW = 1
"""Tokens of a micro-batch that hold no two rows."""

SAME_CURVE = 1e-4
"""Promise 1 of the design, for float32."""
ROUNDED_CURVE = 0.05
"""The same measure for bfloat16, which keeps 8 bits: 0.4 % of every number."""
ROUNDED = 0.02
"""For a single pass in it, relative."""
SAME_FLOAT32 = 5e-5
"""Relative, of sums that were added up in another order."""
FOUR_BITS = 0.10
"""What quantizing to 4 bits may cost of the loss, relative."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """An engine on a device."""

    engine: Engine
    device: Device

    def __str__(self) -> str:
        name = {"cuda": "PyTorch", "mlx": "MLX"}[self.engine]
        return f"{name} on {'a GPU' if self.device == 'gpu' else 'the CPU'}"


def opened(place: Place, **settings: Any) -> Backend:
    """The embedded model under an adapter, float32 unless another `dtype` is given.

    Args:
        place: where.
        settings: of `Setup`.
    """
    given: dict[str, Any] = {
        "model": fetch(find_model(TINY_MODEL)),
        "lora": LoraSpec(rank=16, alpha=32, dropout=0.0),
        "dtype": "float32",
        "max_grad_norm": 1.0,
        "micro_batch_tokens": WHOLE_BATCH,
        **settings,
    }
    setup = Setup(device=place.device, **given)
    return open_backend(Choice(place.engine, place.device, "a benchmark"), setup)


def sample_rows() -> Rows:
    """The embedded sample data, tokenized, in the order of its file."""
    from qwen_local.datasets.prepare import prepare
    from qwen_local.datasets.row_builder import TokenizeConfig
    from qwen_local.datasets.sources import SourceSpec
    from qwen_local.datasets.tokenizer import ChatTokenizer

    config = TokenizeConfig(
        tokenizer=ChatTokenizer.load(tiny_model_path()),
        max_length=2048,
        overlong="drop",
        train_on="assistant",
    )
    prepared = prepare(
        config,
        train=[SourceSpec(name=str(sample_data_path() / "train.jsonl"))],
        eval=[],
        eval_fraction=0.0,
        seed=0,
    )
    return prepared.train.take(range(STEPS * BATCH))


def curve(backend: Backend, rows: Rows, *, start: int = 0, steps: int = STEPS) -> list[float]:
    """Mean loss of each step, from a step on."""
    losses = []
    for number in range(start, start + steps):
        batch = rows.take(range(number * BATCH, (number + 1) * BATCH))
        result = backend.step(batch, lr=RATE, tokens=batch.supervised)
        losses.append(result.loss_sum / batch.supervised if result.finite else float("nan"))
    return losses


def same_curves(here: Place, there: Place) -> Iterator[Figure]:
    """float32 here against float32 there, and bfloat16 here against float32 here."""
    rows = sample_rows()
    exact, other = curve(opened(here), rows), curve(opened(there), rows)
    said = f"losses of {STEPS} steps, float32, {here} against {there}"
    yield check(said, curves_apart(exact, other), at_most=SAME_CURVE)
    said = "loss at the end of them, to that at the beginning"
    yield check(said, ratio(exact[-1], exact[0]), at_most=0.7)
    rounded = curve(opened(here, dtype="bfloat16"), rows)
    said = f"losses of {STEPS} steps on {here}, bfloat16 against float32"
    yield check(said, curves_apart(rounded, exact), at_most=ROUNDED_CURVE)


def curves_apart(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the measure of promise 1, or NaN if a loss is none or all of a curve are zero."""
    if not np.isfinite([*a, *b]).all():  # the largest of some numbers and NaN may be a number
        return math.nan
    return unless_zero(largest_difference(a, b), max(a), max(b))


def four_bits(here: Place) -> Iterator[Figure]:
    """The model in 4 bits: near the whole one, and trained as it is."""
    rows = sample_rows()
    scored = rows.take(range(32))
    plain = opened(here, dtype="bfloat16").score(scored).mean
    backend = opened(here, dtype="bfloat16", quantization="4bit")
    quantized = backend.score(scored).mean
    said = f"loss in 4 bits on {here} against bfloat16, relative"
    yield check(said, relative(quantized, plain), at_most=FOUR_BITS)
    losses = curve(backend, rows, steps=8)
    said = "loss in 4 bits in the eighth step, to that of the first"
    yield check(said, ratio(losses[-1], losses[0]), at_most=0.7)


def together_or_alone(here: Place) -> Iterator[Figure]:
    """Rows computed together against each by itself: no row hears another."""
    rows = sample_rows().take(range(32))
    for dtype, bound in (("float32", SAME_FLOAT32), ("bfloat16", ROUNDED)):
        together = opened(here, dtype=dtype)
        alone = opened(here, dtype=dtype, micro_batch_tokens=ONE_ROW)
        adapter = _noise(together.adapter())
        for backend in (together, alone):
            backend.load_adapter(adapter)
        apart = rows_apart(together.score(rows), alone.score(rows))
        said = f"losses of 32 rows together against each alone, {dtype}, relative"
        yield check(said, apart, at_most=bound)
        for backend in (together, alone):
            backend.step(rows, lr=RATE, tokens=rows.supervised)
        said = f"their gradient likewise, {dtype}, relative"
        apart = _apart(together.state().exp_avg, alone.state().exp_avg)
        yield check(said, apart, at_most=bound)
    yield check("rows whose loss changes with the tokens of another", _leaks(here), at_most=0)


def _leaks(here: Place) -> float:
    """Count the rows that change when all tokens of the first become others; the shapes stay.

    NaN if the first itself does not change.
    """
    rows = sample_rows().take(range(16))
    backend = opened(here)
    before = backend.score(rows).nll_R
    ids, targets = rows.row(0)
    other = (np.flip(ids), targets)
    changed = Rows.from_pairs([other, *(rows.row(r) for r in range(1, len(rows)))])
    after = backend.score(changed).nll_R
    return unless_zero(int(np.count_nonzero(before[1:] != after[1:])), before[0] - after[0])


def resumed(here: Place) -> Iterator[Figure]:
    """Eight steps against four, their state in a new engine, and four more.

    Where two whole runs differ already (sums of floats in whatever order a card's threads come),
    nothing else can be exact either; that difference stands beside.
    """
    rows = sample_rows()
    settings: dict[str, Any] = {"lora": LoraSpec(rank=16, alpha=32, dropout=0.1)}
    whole, again, first = (opened(here, **settings) for _ in range(3))
    fresh = whole.adapter()
    for backend in (whole, again):
        curve(backend, rows, steps=8)
    curve(first, rows, steps=4)
    second = opened(here, seed=0, **settings)
    second.load_state(first.state())
    curve(second, rows, start=4, steps=4)
    expected = whole.adapter()
    learned = _apart(fresh, expected)
    for said, other in (
        ("a run against itself, its adapter", again),
        ("a resumed run against it", second),
    ):
        yield check(said, unless_zero(_apart(other.adapter(), expected), learned), at_most=1e-4)
    exact = all(np.array_equal(array, expected[n]) for n, array in second.adapter().items())
    yield {"figure": "a resumed run is the same to the last bit", "value": exact}


def answers(here: Place, there: Place) -> Iterator[Figure]:
    """Greedy answers here and there; a near tie may fall either way."""
    prompts = prompts_of_the_sample(16)
    given: dict[str, Any] = {"max_tokens": 24, "stop_ids": stop_ids()}
    a, b = (opened(place).generate(prompts, **given) for place in (here, there))
    differing = sum(x.ids != y.ids for x, y in zip(a, b, strict=True))
    largest = (max((i for one in all_ids for i in one.ids), default=0) for all_ids in (a, b))
    said = f"answers of 16 that differ, {here} against {there}"
    yield check(said, unless_zero(differing, *largest), at_most=1)


def prompts_of_the_sample(count: int) -> list[list[int]]:
    """What stands before the answers of the first rows."""
    rows = sample_rows()
    prompts = []
    for r in range(count):
        ids, targets = rows.row(r)
        prompts.append(ids[: int(targets.supervised_N[0]) + 1].tolist())
    return prompts


def stop_ids() -> Sequence[int]:
    """The tokens that end an answer of the embedded model."""
    from qwen_local.datasets.tokenizer import ChatTokenizer

    return ChatTokenizer.load(tiny_model_path()).stop_ids


def rows_apart(a: Scores, b: Scores) -> float:
    """The largest difference of a row's loss, relative to the second; NaN if all losses are zero.

    A row that the model knows by heart has hardly a loss, and rounding is any share of that: a
    tenth of a nat a token is the least that a difference is held against.
    """
    apart = np.max(np.abs(a.nll_R - b.nll_R) / np.maximum(b.nll_R, 0.1 * b.tokens_R))
    return unless_zero(float(apart), a.nll_R.max(), b.nll_R.max())


def _noise(adapter: Arrays) -> Arrays:
    """An adapter that does something: a fresh one has zeros for B."""
    generator = np.random.default_rng(0)
    return {
        name: array + generator.normal(0, 0.02, array.shape).astype(np.float32)
        for name, array in adapter.items()
    }


def _apart(a: Arrays, b: Arrays) -> float:
    """The norm of the difference of all arrays, relative to that of the second, NaN if it is 0."""
    difference = sum(float(np.square(a[name] - b[name]).sum()) for name in b)
    squares = sum(float(np.square(array).sum()) for array in b.values())
    return float(np.sqrt(difference / squares)) if squares else math.nan
