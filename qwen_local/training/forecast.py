"""How long a run will take, from a pass over its largest micro-batches; and how far off it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwen_local.rows.planner import Layout, epoch_order, micro_batches
from qwen_local.rows.rows import AnyRows
from qwen_local.training.schedule import EVALUATION_COST, Schedule

STEPS_LOOKED_AT = 500
"""Steps of the first epoch whose padding is counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """The time that is still to come."""

    steps: int
    evaluations: int
    seconds_per_step: float
    seconds_per_evaluation: float

    @property
    def training_seconds(self) -> float:
        """Of all steps."""
        return self.steps * self.seconds_per_step

    @property
    def evaluation_seconds(self) -> float:
        """Of all evaluations."""
        return self.evaluations * self.seconds_per_evaluation

    @property
    def seconds(self) -> float:
        """Of both."""
        return self.training_seconds + self.evaluation_seconds


def forecast(
    schedule: Schedule,
    train: AnyRows,
    evaluation: AnyRows | None,
    *,
    batch_size: int,
    seed: int,
    budget: int,
    layout: Layout,
    seconds: float,
    tokens: int,
    done: int = 0,
) -> Forecast:
    """The time of what is left of a run.

    Time goes by positions computed, padding among them. The largest micro-batches that were tried
    have next to none; those of the run are cut here as they will be.

    Args:
        schedule: of the whole run.
        train: rows to learn.
        evaluation: rows to evaluate on.
        batch_size: rows of an optimizer step.
        seed: of the order.
        budget: positions of a micro-batch.
        layout: of a micro-batch.
        seconds: that the trial took, forward and backward.
        tokens: its positions.
        done: optimizer steps that the run had when it was gone on with.
    """
    each = seconds / tokens
    lengths_R = train.lengths_R
    order = epoch_order(len(train), seed=seed, epoch=0)
    starts = range(0, len(order), batch_size)[:STEPS_LOOKED_AT]
    positions = [_computed(lengths_R[order[at : at + batch_size]], budget, layout) for at in starts]
    left = schedule.steps - done
    evaluations, scored = 0, 0
    if evaluation is not None:
        before = 1 + done // schedule.eval_every if done else 0
        evaluations = max(0, schedule.evaluations - before)
        scored = _computed(evaluation.lengths_R, budget, layout)
    return Forecast(
        steps=left,
        evaluations=evaluations,
        seconds_per_step=each * sum(positions) / len(positions),
        seconds_per_evaluation=each * scored / EVALUATION_COST,
    )


def _computed(lengths_R: np.ndarray, budget: int, layout: Layout) -> int:
    """Positions that rows of these lengths take, in their micro-batches."""
    groups = micro_batches(lengths_R.tolist(), budget=budget, layout=layout)
    return sum(layout.positions(lengths_R[group]) for group in groups)


def describe(coming: Forecast) -> str:
    """In words.

    >>> describe(Forecast(steps=110, evaluations=2, seconds_per_step=6, seconds_per_evaluation=30))
    'about 12 min: 11 of training, 1 of evaluation'
    >>> describe(Forecast(steps=4, evaluations=0, seconds_per_step=5, seconds_per_evaluation=0))
    'about 20 s'
    """
    unit = _Unit.of(coming.seconds)
    said = f"about {duration(coming.seconds)}"
    if not coming.evaluations:
        return said
    training, evaluation = map(unit.told, (coming.training_seconds, coming.evaluation_seconds))
    return f"{said}: {training} of training, {evaluation} of evaluation"


def how_far_off(coming: Forecast, *, seconds: float, planned_bytes: int, peak_bytes: int) -> str:
    """How a run came out beside what was planned, in words.

    Args:
        coming: what was planned. Of a run that stopped early, with the steps and evaluations that
            it came to (`dataclasses.replace`).
        seconds: that training and evaluation took.
        planned_bytes: `Memory.peak`.
        peak_bytes: the measured one.

    >>> how_far_off(
    ...     Forecast(steps=120, evaluations=0, seconds_per_step=6, seconds_per_evaluation=0),
    ...     seconds=780, planned_bytes=1_210_000_000, peak_bytes=1_150_000_000,
    ... )
    'planned 12 min, took 13 (+8 %); planned 1.21 GB, peaked at 1.15 (-5 %)'
    """
    unit = _Unit.of(seconds)
    took = unit.told(seconds) if unit.name == _Unit.of(coming.seconds).name else duration(seconds)
    time = f"planned {duration(coming.seconds)}, took {took}"
    memory = f"planned {planned_bytes / 1e9:.2f} GB, peaked at {peak_bytes / 1e9:.2f}"
    return f"{time}{_off(coming.seconds, seconds)}; {memory}{_off(planned_bytes, peak_bytes)}"


def duration(seconds: float) -> str:
    """A time in its unit; the same time reads the same in every message.

    >>> duration(8.46), duration(780)
    ('8.5 s', '13 min')
    """
    unit = _Unit.of(seconds)
    return f"{unit.told(seconds)} {unit.name}"


def _off(planned: float, came: float) -> str:
    return f" ({came / planned - 1:+.0%})".replace("%", " %") if planned > 0 else ""


@dataclass(frozen=True, slots=True)
class _Unit:
    """A unit in which times of one size are handy numbers."""

    name: str
    seconds: float
    decimals: int

    @classmethod
    def of(cls, seconds: float) -> _Unit:
        """The one for a time; it serves its parts as well.

        >>> [_Unit.of(n).told(n) for n in (3.21, 59, 780, 5400, 54_000)]
        ['3.2', '59', '13', '1.5', '15']
        """
        if seconds < 90:
            return cls("s", 1.0, int(seconds < 9.95))
        if seconds < 90 * 60:
            return cls("min", 60.0, 0)
        return cls("h", 3600.0, int(seconds < 9.95 * 3600))

    def told(self, seconds: float) -> str:
        """A time in this unit, without its name."""
        return f"{seconds / self.seconds:.{self.decimals}f}"
