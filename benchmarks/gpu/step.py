"""Where the time of a training step goes: on the host or on the card.

Two passes over the same batches, with nothing but the engine's own step inside:

- by the clock: `step_ms` from one step to the next, `host_ms` the part of it in which the host does
  not wait for the card, `span_ms` between two CUDA events around the step;
- by `torch.profiler`: `busy_ms` summed over all kernels and copies, and how many launches and waits
  a step has. The profiler slows the host down, so no time of the host is taken from it.

`first_pass_ms` is a step over rows of a new shape. A step is launch-bound where `step_ms` is near
`host_ms` and `busy_ms` is far below `span_ms`. An engine that captures CUDA graphs is measured with
and without them. On a CPU there is only the clock.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.made_rows import made_batches
from benchmarks.parts import Device, Figure, check, relative, skipped
from benchmarks.peers.models import make_model
from benchmarks.roofline import DTYPES, RATE, open_engine
from benchmarks.timing import release, synchronize
from qwen_local.backends.base import Backend, RowTooLargeError, Setup
from qwen_local.errors import OutOfMemoryError
from qwen_local.models.source import fetch, find_model
from qwen_local.rows.rows import Rows

MODELS: dict[Device, tuple[str, ...]] = {"gpu": ("Qwen3-0.6B", "Qwen3-1.7B"), "cpu": ("tiny",)}
TOKENS: dict[Device, tuple[int, ...]] = {"gpu": (512, 2048, 8192), "cpu": (512,)}
"""Of a step, about."""
BATCHES, PASSES, PROFILED = 5, 3, 2
"""Batches of a size, passes over them, and batches of the profile.

The last pass counts: a graph is recorded for a shape that was seen before.
"""
SAME_LOSS = 1e-2
"""Bound on the losses of both forms in bfloat16, relative."""
WAITS = ("cpu", "item", "tolist")
"""Methods of a tensor that wait for the card."""
LAUNCHES = (
    *("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"),
    *("cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync"),
)
SYNCS = ("cudaStreamSynchronize", "cudaEventSynchronize")
"""Names of the runtime and the driver in a profile. `cudaDeviceSynchronize` is only ours and the
profiler's, around the steps."""
CARD = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]  # not in its stubs

Work = Callable[[Rows], float]
"""Takes a step; returns its mean loss."""


@dataclass(kw_only=True, slots=True)
class Clock:
    """Times of the steps that count, and the losses of all."""

    step_ms: list[float] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)
    span_ms: list[float] = field(default_factory=list)
    """Empty on a CPU."""
    first_pass_ms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return medians, and the longest step."""
        named = {
            "step_ms": self.step_ms,
            "host_ms": self.host_ms,
            "span_ms": self.span_ms,
            "first_pass_ms": self.first_pass_ms,
        }
        found = {name: round(statistics.median(ms), 3) for name, ms in named.items() if ms}
        return {**found, "longest_step_ms": round(max(self.step_ms), 3)}


def step_costs(device: Device, folder: Path) -> Iterator[Figure]:
    """Measure steps of every size, and check that their losses are numbers and agree."""
    for name in MODELS[device]:
        model = fetch(find_model(str(make_model(name, DTYPES[device], folder))))
        losses: dict[str, list[float]] = {}
        for form, settings in forms(device).items():
            release(device)
            try:
                backend = open_engine(model, device, settings)
            except OutOfMemoryError:
                yield {"model": name, "form": form, **skipped("memory does not hold the model")}
                continue
            losses[form] = yield from _one_form(backend, name, form, device)
            del backend
        for form, found in losses.items():
            wrong = sum(not 0 < loss < float("inf") for loss in found)
            yield check(f"losses of {name}, {form}, zero or not finite", wrong, at_most=0)
        if "eager" in losses and "graph" in losses:
            apart = float(np.max([*map(relative, losses["graph"], losses["eager"])]))
            yield check(f"losses of {name}, graph against eager", apart, at_most=SAME_LOSS)


def forms(device: Device) -> dict[str, dict[str, bool]]:
    """Return the forms of a step that the engine has here, as settings of its `Setup`."""
    if "cuda_graphs" not in {one.name for one in fields(Setup)}:
        return {"eager": {}}
    found = {"eager": {"cuda_graphs": False}}
    return found | ({"graph": {"cuda_graphs": True}} if device == "gpu" else {})


def _one_form(
    backend: Backend, name: str, form: str, device: Device
) -> Generator[Figure, None, list[float]]:
    """Measure an engine at every size, first by the clock; return the losses by the clock."""

    def step(rows: Rows) -> float:
        return backend.step(rows, lr=RATE, tokens=rows.supervised).loss_sum / rows.supervised

    losses: list[float] = []
    batches = {tokens: made_batches(tokens, BATCHES, vocabulary=2000) for tokens in TOKENS[device]}
    fitting: list[tuple[dict[str, Any], list[Rows]]] = []
    for tokens, drawn in batches.items():
        case = {"model": name, "form": form, "tokens": tokens}
        release(device)
        try:
            clock = by_the_clock(step, drawn, device)
        except RowTooLargeError:
            yield {**case, **skipped("memory does not suffice")}
            break
        fitting.append((case, drawn))
        losses += clock.losses
        counted = sum(rows.tokens for rows in drawn)
        yield {
            **case,
            **clock.figures(),
            "tokens_per_second": round(1000 * counted / sum(clock.step_ms)),
            "micro_batch_tokens": backend.micro_batch_tokens,
            **memory(device),
        }
    if device == "gpu":
        for case, drawn in fitting:
            yield {**case, **by_the_profiler(step, drawn[-PROFILED:])}
    return losses


def by_the_clock(step: Work, batches: Sequence[Rows], device: Device) -> Clock:
    """Take a step over each batch in every pass; return the times of the last."""
    clock = Clock()
    for number, rows in enumerate([*batches] * PASSES):
        synchronize(device)
        make: Any = partial(torch.cuda.Event, enable_timing=True)
        events = [make() for _ in range(2)] if device == "gpu" else []
        with waiting() as waited:
            start = time.perf_counter()
            for event in events[:1]:
                event.record()
            clock.losses.append(step(rows))
            for event in events[1:]:
                event.record()
            host = time.perf_counter() - start - sum(waited)
        synchronize(device)
        whole = 1000 * (time.perf_counter() - start)
        if number < len(batches):
            clock.first_pass_ms.append(whole)
        if number < len(batches) * (PASSES - 1):
            continue
        clock.step_ms.append(whole)
        clock.host_ms.append(1000 * host)
        if events:
            clock.span_ms.append(events[0].elapsed_time(events[1]))
    return clock


@contextmanager
def waiting() -> Iterator[list[float]]:
    """Yield a list that gets the seconds of each call that waits for the card."""
    waited: list[float] = []

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*given, **named)
            finally:
                waited.append(time.perf_counter() - start)

        return call

    # They belong to the class below `torch.Tensor`; ours hide them there until they are removed.
    for name in WAITS:
        setattr(torch.Tensor, name, timed(getattr(torch.Tensor, name)))
    try:
        yield waited
    finally:
        for name in WAITS:
            delattr(torch.Tensor, name)


def by_the_profiler(step: Work, batches: Sequence[Rows]) -> dict[str, Any]:
    """Return launches, waits and the card's own milliseconds of a step, or why there are none."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=activities) as profile:
            for rows in batches:
                step(rows)
            torch.cuda.synchronize()
        return summary(profile.events(), len(batches))
    except RuntimeError as error:  # the profiler's: counters of a card may be closed to a user
        return {"profile": f"none: {error}"[:300]}


def summary(events: Sequence[Any], steps: int) -> dict[str, Any]:
    """Return the figures of a profile of some steps, and the kernels that took longest."""
    calls: Counter[str] = Counter()
    took: Counter[str] = Counter()
    for event in events:
        if event.device_type != CARD:
            calls[event.name] += 1
        elif not event.is_user_annotation:  # a range around kernels that are counted by themselves
            took[event.name] += event.time_range.elapsed_us()
    if not took:
        return {"profile": "none: it has no kernels"}
    longest = {name[:120]: round(us / 1000 / steps, 3) for name, us in took.most_common(12)}
    return {
        "busy_ms": round(sum(took.values()) / 1000 / steps, 3),
        "launches": sum(calls[name] for name in LAUNCHES) / steps,
        "graphs": calls["cudaGraphLaunch"] / steps,
        "syncs": sum(calls[name] for name in SYNCS) / steps,
        "kernels_ms": longest,
    }


def memory(device: Device) -> dict[str, float]:
    """Return the card's peaks since the last `release`, and how much of them lay idle."""
    if device == "cpu":
        return {}
    reserved, allocated = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    return {
        "reserved_bytes": reserved,
        "allocated_bytes": allocated,
        "reserved_to_allocated": round(reserved / allocated, 3) if allocated else 0.0,
    }
