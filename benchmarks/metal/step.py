"""Where the time and the memory of a training step go on Metal.

MLX builds a step's graph on the host and hands it over (`mx.async_eval`); then the host waits.
`host_ms` is the time until the last micro-batch is handed over, `step_ms` the whole step. `shapes`
counts the different shapes of micro-batches so far: each is compiled once and kept for good.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.made_rows import made_batches
from benchmarks.parts import Device, Figure, check
from benchmarks.peers.models import make_model
from benchmarks.roofline import DTYPES
from qwen_local.backends.base import Setup
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import fetch, find_model
from qwen_local.rows.planner import choose_widths
from qwen_local.rows.rows import Rows

if TYPE_CHECKING:
    from qwen_local.backends.mlx.engine import MlxBackend

MODEL: dict[Device, str] = {"gpu": "Qwen3-0.6B", "cpu": "tiny"}
TOKENS: dict[Device, tuple[int, ...]] = {"gpu": (512, 2048, 8192), "cpu": (512,)}
"""Of a step, about."""
MICRO_BATCH_TOKENS: dict[Device, int] = {"gpu": 2048, "cpu": 512}
WARM_UP, MEASURED = 2, 3
SMALL_CACHE = 2 << 30
"""Bytes of a smaller cache that the last size is measured with once more, on Metal."""
RATE = 1e-4


def step_costs(device: Device, folder: Path) -> Iterator[Figure]:
    """Measure steps of every size in the model's dtype."""
    import qwen_local.backends.mlx.before_import  # noqa: F401  # before mlx.core is imported

    import mlx.core as mx  # isort: skip
    from qwen_local.backends.mlx.engine import MlxBackend

    model = fetch(find_model(str(make_model(MODEL[device], DTYPES[device], folder))))
    drawn = {
        tokens: made_batches(tokens, WARM_UP + MEASURED, vocabulary=2000)
        for tokens in TOKENS[device]
    }
    lengths = np.concatenate([rows.lengths_R for batches in drawn.values() for rows in batches])
    setup = Setup(
        model=model,
        lora=LoraSpec(rank=16, alpha=32, dropout=0.0),
        device=device,
        dtype=DTYPES[device],
        max_grad_norm=1.0,
        micro_batch_tokens=MICRO_BATCH_TOKENS[device],
        widths=choose_widths(lengths),
    )
    backend = MlxBackend(setup)
    shapes = shapes_of(backend)
    cases = [(tokens, cache_limit()) for tokens in drawn]
    cases += [(max(drawn), SMALL_CACHE)] if device == "gpu" else []
    for tokens, limit in cases:
        mx.set_cache_limit(limit)
        mx.reset_peak_memory()
        found = _measured(backend, drawn[tokens])
        losses = found.pop("losses")
        yield {
            "model": MODEL[device],
            "dtype": DTYPES[device],
            "tokens": tokens,
            **found,
            "shapes": len(shapes),
            **memory(),
        }
        wrong = sum(not 0 < loss < float("inf") for loss in losses)
        said = f"losses at {tokens} tokens, cache of {limit >> 20} MiB, zero or not finite"
        yield check(said, wrong, at_most=0)


def _measured(backend: MlxBackend, batches: list[Rows]) -> dict[str, Any]:
    """Take a step over each batch; the first `WARM_UP` count only for their losses."""
    losses, whole, host = [], [], []
    for rows in batches:
        with handed_over() as times:
            start = time.perf_counter()
            result = backend.step(rows, lr=RATE, tokens=rows.supervised)
            whole.append(1000 * (time.perf_counter() - start))
        host.append(1000 * (times[-1] - start) if times else whole[-1])
        losses.append(result.loss_sum / rows.supervised)
    counted = sum(rows.tokens for rows in batches[WARM_UP:])
    return {
        "losses": losses,
        "first_step_ms": round(whole[0], 3),
        "step_ms": round(statistics.median(whole[WARM_UP:]), 3),
        "longest_step_ms": round(max(whole[WARM_UP:]), 3),
        "host_ms": round(statistics.median(host[WARM_UP:]), 3),
        "tokens_per_second": round(1000 * counted / sum(whole[WARM_UP:])),
    }


@contextmanager
def handed_over() -> Iterator[list[float]]:
    """Yield a list that gets the time at which each `mx.async_eval` returns."""
    import mlx.core as mx

    times: list[float] = []
    hand_over: Any = mx.async_eval

    def timed(*arrays: Any) -> None:
        hand_over(*arrays)
        times.append(time.perf_counter())

    mx.async_eval = timed
    try:
        yield times
    finally:
        mx.async_eval = hand_over


def shapes_of(backend: MlxBackend) -> set[tuple[Any, ...]]:
    """Return a set that collects the shapes of the micro-batches that a step computes."""
    shapes: set[tuple[Any, ...]] = set()
    gradient: Callable[..., Any] = backend._gradient

    def noted(adapter: Any, key: Any, *arrays: Any) -> Any:
        ids, positions, targets = arrays
        columns = tuple((name, column.shape) for name, column in sorted(targets.items()))
        shapes.add((ids.shape, positions.shape, columns))
        return gradient(adapter, key, *arrays)

    backend._gradient = noted
    return shapes


def cache_limit() -> int:
    """Return how many bytes MLX may keep after use; it empties what is kept."""
    import mlx.core as mx

    limit = int(mx.set_cache_limit(0))  # it returns the former one, and nothing else reads it
    mx.set_cache_limit(limit)
    return limit


def memory() -> dict[str, int]:
    """Return what MLX's arrays hold, what its cache holds, and the most that arrays held."""
    import mlx.core as mx

    return {
        "active_bytes": mx.get_active_memory(),
        "cache_bytes": mx.get_cache_memory(),
        "peak_memory_bytes": mx.get_peak_memory(),
        "cache_limit_bytes": cache_limit(),  # last: it empties the cache
    }
