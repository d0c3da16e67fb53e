"""Estimated time of a run, from its largest micro-batches, and its error at the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwen_local.job.schema import TrainSpec
from qwen_local.rows.planner import Layout, epoch_order, micro_batches
from qwen_local.training.loop import Data
from qwen_local.training.schedule import EVALUATION_COST, Schedule
from qwen_local.training.warm_up import WarmUp

STEPS_COUNTED = 500
"""Steps of the first epoch whose padding is counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Estimated time of the rest of a run."""

    steps: int
    evaluations: int
    seconds_per_step: float
    seconds_per_evaluation: float

    @property
    def training_seconds(self) -> float:
        """Time of all steps."""
        return self.steps * self.seconds_per_step

    @property
    def evaluation_seconds(self) -> float:
        """Time of all evaluations."""
        return self.evaluations * self.seconds_per_evaluation

    @property
    def seconds(self) -> float:
        """Time of steps and evaluations."""
        return self.training_seconds + self.evaluation_seconds


def forecast(
    schedule: Schedule,
    data: Data,
    spec: TrainSpec,
    *,
    budget: int,
    layout: Layout,
    warm_up: WarmUp,
    done: int = 0,
) -> Forecast:
    """Estimate the time of the rest of a run.

    Time is proportional to computed positions, with padding. The micro-batches of the warm-up have
    almost no padding; those of the run are planned here as the engine will.

    Args:
        schedule: of the whole run.
        data: training and evaluation rows.
        spec: batch size, seed of the row order.
        budget: most positions of a micro-batch.
        layout: of a micro-batch.
        warm_up: cost of the largest micro-batch, forward and backward.
        done: optimizer steps done before.
    """
    each = warm_up.seconds / warm_up.tokens
    lengths_R, size = data.train.lengths_R, spec.batch_size
    order = epoch_order(len(data.train), seed=spec.seed, epoch=0)
    starts = range(0, len(order), size)[:STEPS_COUNTED]
    positions = [_computed(lengths_R[order[at : at + size]], budget, layout) for at in starts]
    left = schedule.steps - done
    evaluations, scored = 0, 0
    if data.evaluation is not None:
        before = 1 + done // schedule.eval_every if done else 0
        evaluations = max(0, schedule.evaluations - before)
        scored = _computed(data.evaluation.lengths_R, budget, layout)
    return Forecast(
        steps=left,
        evaluations=evaluations,
        seconds_per_step=each * sum(positions) / len(positions),
        seconds_per_evaluation=each * scored / EVALUATION_COST,
    )


def _computed(lengths_R: np.ndarray, budget: int, layout: Layout) -> int:
    """Return the positions of rows of these lengths in their micro-batches, with padding."""
    groups = micro_batches(lengths_R.tolist(), budget=budget, layout=layout)
    return sum(layout.positions(lengths_R[group]) for group in groups)


def describe(forecast: Forecast) -> str:
    """Describe an estimate in words.

    >>> describe(Forecast(steps=110, evaluations=2, seconds_per_step=6, seconds_per_evaluation=30))
    'about 12 min: 11 of training, 1 of evaluation'
    >>> describe(Forecast(steps=4, evaluations=0, seconds_per_step=5, seconds_per_evaluation=0))
    'about 20 s'
    """
    unit = _Unit.of(forecast.seconds)
    text = f"about {duration(forecast.seconds)}"
    if not forecast.evaluations:
        return text
    training, evaluation = map(
        unit.format, (forecast.training_seconds, forecast.evaluation_seconds)
    )
    return f"{text}: {training} of training, {evaluation} of evaluation"


def describe_error(
    planned: Forecast, *, seconds: float, planned_bytes: int, peak_bytes: int
) -> str:
    """Describe planned and actual time and memory of a run in words.

    Args:
        planned: the estimate; for a run that stopped early, with the steps and evaluations that it
            did (`dataclasses.replace`).
        seconds: time of training and evaluation.
        planned_bytes: `Memory.peak`.
        peak_bytes: measured peak.

    >>> describe_error(
    ...     Forecast(steps=120, evaluations=0, seconds_per_step=6, seconds_per_evaluation=0),
    ...     seconds=780, planned_bytes=1_210_000_000, peak_bytes=1_150_000_000,
    ... )
    'planned 12 min, took 13 (+8 %); planned 1.21 GB, peaked at 1.15 (-5 %)'
    """
    unit = _Unit.of(seconds)
    same_unit = unit.name == _Unit.of(planned.seconds).name
    took = unit.format(seconds) if same_unit else duration(seconds)
    time = f"planned {duration(planned.seconds)}, took {took}"
    memory = f"planned {planned_bytes / 1e9:.2f} GB, peaked at {peak_bytes / 1e9:.2f}"
    time += _deviation(planned.seconds, seconds)
    memory += _deviation(planned_bytes, peak_bytes)
    return f"{time}; {memory}"


def duration(seconds: float) -> str:
    """Format a time with a suitable unit.

    >>> duration(8.46), duration(780)
    ('8.5 s', '13 min')
    """
    unit = _Unit.of(seconds)
    return f"{unit.format(seconds)} {unit.name}"


def _deviation(planned: float, actual: float) -> str:
    return f" ({actual / planned - 1:+.0%})".replace("%", " %") if planned > 0 else ""


@dataclass(frozen=True, slots=True)
class _Unit:
    """A unit of time, with the decimals to print."""

    name: str
    seconds: float
    decimals: int

    @classmethod
    def of(cls, seconds: float) -> _Unit:
        """Choose the unit for a time and its parts.

        >>> [_Unit.of(n).format(n) for n in (3.21, 59, 780, 5400, 54_000)]
        ['3.2', '59', '13', '1.5', '15']
        """
        if seconds < 90:
            return cls("s", 1.0, int(seconds < 9.95))
        if seconds < 90 * 60:
            return cls("min", 60.0, 0)
        return cls("h", 3600.0, int(seconds < 9.95 * 3600))

    def format(self, seconds: float) -> str:
        """Format a time in this unit, without its name."""
        return f"{seconds / self.seconds:.{self.decimals}f}"
