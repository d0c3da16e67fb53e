"""Number of steps, learning rate of each step, and steps with an evaluation.

k is the number of optimizer steps already done, as transformers counts it: the first step runs at
lr(0), which is zero with warm-up. Checked against reference runs R1, R3 and R4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwen_local.job.schema import TrainSpec

EVALUATIONS = 20
"""Largest number of evaluations with `eval_every: auto`, not counting the one before step 1."""

EVALUATION_COST = 2
"""Rows evaluated in the time that training on one row takes: forward against forward and backward
(frozen weights need no gradient)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Steps of a run."""

    steps: int
    steps_per_epoch: int
    warmup: int
    eval_every: int
    """0 without evaluation rows."""
    peak: float
    shape: str
    """`cosine`, `linear` or `constant`, after the warm-up."""
    trained_rows: int
    """Rows of all steps; a row counts once per epoch."""
    eval_rows: int

    def learning_rate(self, k: int) -> float:
        """Learning rate of the step after k finished ones."""
        if k < self.warmup:
            return self.peak * k / self.warmup
        if self.shape == "constant":
            return self.peak
        progress = (k - self.warmup) / max(1, self.steps - self.warmup)
        if self.shape == "linear":
            return self.peak * (1.0 - progress)
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * progress))

    def evaluates_after(self, step: int) -> bool:
        """True if an evaluation follows step number `step` (1 is the first)."""
        return bool(self.eval_every) and (step % self.eval_every == 0 or step >= self.steps)

    @property
    def evaluations(self) -> int:
        """Number of evaluations of the whole run, including the one before the first step."""
        return 1 + math.ceil(self.steps / self.eval_every) if self.eval_every else 0

    @property
    def evaluation_share(self) -> float:
        """Expected share of the run's time spent on evaluation."""
        evaluating = self.evaluations * self.eval_rows
        return evaluating / (evaluating + EVALUATION_COST * self.trained_rows)


def make_schedule(train: TrainSpec, *, rows: int, eval_rows: int) -> Schedule:
    """Make the schedule of a job with this many rows.

    A run with an evaluation set is always evaluated before its first step and after its last. With
    `eval_every: auto` there are evaluations in between, up to 20 in all, as long as evaluation
    stays within a tenth of the time.
    """
    steps, steps_per_epoch = train.total_steps(rows), math.ceil(rows / train.batch_size)
    epochs, rest = divmod(steps, steps_per_epoch)
    trained_rows = epochs * rows + rest * train.batch_size
    every = train.eval_every
    if every == "auto":
        every = _eval_every(steps, trained_rows, eval_rows)
    return Schedule(
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        warmup=train.warm_up(steps),
        eval_every=every if eval_rows else 0,
        peak=train.learning_rate,
        shape=train.schedule,
        trained_rows=trained_rows,
        eval_rows=eval_rows,
    )


def _eval_every(steps: int, trained_rows: int, eval_rows: int) -> int:
    """Smallest number of steps between evaluations that keeps their share within a tenth.

    n evaluations are a tenth if n x eval_rows = (cost x trained_rows + n x eval_rows) / 10. One
    of them precedes the first step, so n - 1 follow a step; one always follows the last step.
    """
    affordable = EVALUATION_COST * trained_rows // (9 * max(1, eval_rows)) - 1
    return math.ceil(steps / min(EVALUATIONS, max(1, affordable)))
