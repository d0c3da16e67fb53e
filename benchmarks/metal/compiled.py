"""The step compiled over few shapes against the plain one: the same losses, time, peak memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.agreement import SAME_CURVE, curves_apart
from benchmarks.made_rows import made_rows
from benchmarks.metal.step import memory, shapes_of
from benchmarks.parts import Device, Figure, check
from benchmarks.peers.models import make_model
from qwen_local.backends.base import Setup
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import ModelFiles, fetch, find_model
from qwen_local.rows.planner import choose_widths
from qwen_local.rows.rows import Rows

MODEL: dict[Device, str] = {"gpu": "Qwen3-0.6B", "cpu": "tiny"}
STEPS: dict[Device, int] = {"gpu": 24, "cpu": 6}
BATCH = 4
RATE = 1e-4


def compiled_or_not(device: Device, folder: Path) -> Iterator[Figure]:
    """In float32 on the embedded model whether they agree; in bfloat16 what each costs."""
    tiny = fetch(find_model(str(make_model("tiny", "float32", folder))))
    plain, few = (_run(tiny, device, "float32", few_shapes=few) for few in (False, True))
    said = "losses of the compiled step against the plain one, float32"
    yield check(said, curves_apart(few["losses"], plain["losses"]), at_most=SAME_CURVE)
    dtype: Literal["bfloat16", "float32"] = "bfloat16" if device == "gpu" else "float32"
    model = tiny
    if device == "gpu":
        model = fetch(find_model(str(make_model(MODEL[device], dtype, folder))))
    for few_shapes in (False, True):
        found = _run(model, device, dtype, few_shapes=few_shapes)
        del found["losses"]
        yield {"compiled": few_shapes, "model": MODEL[device], "dtype": dtype, **found}


def _run(
    model: ModelFiles, device: Device, dtype: Literal["bfloat16", "float32"], *, few_shapes: bool
) -> dict[str, Any]:
    """Steps over rows of code-like lengths."""
    import qwen_local.backends.mlx.before_import  # noqa: F401  # before mlx.core is imported

    import mlx.core as mx  # isort: skip
    from qwen_local.backends.mlx.engine import MlxBackend

    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    rows = made_rows(
        "code-alpaca", BATCH * STEPS[device], np.random.default_rng(0), vocabulary=2000
    )
    setup = Setup(
        model=model,
        lora=LoraSpec(rank=16, alpha=32, dropout=0.0),
        device=device,
        dtype=dtype,
        max_grad_norm=1.0,
        micro_batch_tokens=4096,
        widths=choose_widths(rows.lengths_R),
    )
    backend = MlxBackend(setup, few_shapes=few_shapes)
    shapes = shapes_of(backend)
    losses, seconds = [], []
    for number in range(STEPS[device]):
        batch: Rows = rows.take(range(number * BATCH, (number + 1) * BATCH))
        began = time.perf_counter()
        result = backend.step(batch, lr=RATE, tokens=batch.supervised)
        seconds.append(time.perf_counter() - began)
        losses.append(result.loss_sum / batch.supervised)
    later = seconds[len(seconds) // 2 :]
    tokens = rows.take(range(BATCH * (STEPS[device] // 2), len(rows))).tokens
    return {
        "losses": losses,
        "first_step_seconds": round(seconds[0], 3),
        "median_step_seconds_of_the_second_half": round(statistics.median(later), 4),
        "tokens_per_second_of_the_second_half": round(tokens / sum(later), 1),
        "shapes": len(shapes),
        **memory(),
    }
