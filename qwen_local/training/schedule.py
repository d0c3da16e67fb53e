"""How many steps, and the learning rate of each.

k is the number of optimizer steps already done, as transformers counts it: the first step runs at
lr(0), which under warm-up is zero. Checked against reference runs R1, R3 and R4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwen_local.job import TrainSpec

EVALUATIONS = 20
"""Evaluations of a run whose eval set is small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The steps of a run."""

    steps: int
    steps_per_epoch: int
    warmup: int
    eval_every: int
    """0 where there is nothing to evaluate on."""
    peak: float
    shape: str
    """`cosine`, `linear` or `constant`, after the warm-up."""

    def learning_rate(self, k: int) -> float:
        """The rate of the step that follows k finished ones."""
        if k < self.warmup:
            return self.peak * k / self.warmup
        if self.shape == "constant":
            return self.peak
        progress = (k - self.warmup) / max(1, self.steps - self.warmup)
        if self.shape == "linear":
            return self.peak * (1.0 - progress)
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * progress))

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation follows step number `step` (1 is the first)."""
        return bool(self.eval_every) and (step % self.eval_every == 0 or step == self.steps)

    @property
    def evaluations(self) -> int:
        """Evaluations of the whole run, the one before the first step included."""
        return 1 + math.ceil(self.steps / self.eval_every) if self.eval_every else 0

    def evaluation_share(self, *, eval_rows: int, batch_size: int) -> float:
        """Expected share of the run's time that evaluation takes.

        A row costs twice as much in training as in evaluation: forward and backward against
        forward alone (the frozen weights need no gradient).
        """
        evaluating = self.evaluations * eval_rows / 2
        return evaluating / (evaluating + self.steps * batch_size)


def make_schedule(train: TrainSpec, *, rows: int, eval_rows: int) -> Schedule:
    """The schedule of a job over this many rows.

    With `eval_every: auto` evaluation happens about 20 times, or so rarely that it costs at most a
    tenth of the training it interrupts.
    """
    steps = train.total_steps(rows)
    every = train.eval_every
    if every == "auto":
        every = _eval_every(steps, eval_rows, train.batch_size)
    return Schedule(
        steps=steps,
        steps_per_epoch=math.ceil(rows / train.batch_size),
        warmup=train.warm_up(steps),
        eval_every=every if eval_rows else 0,
        peak=train.learning_rate,
        shape=train.schedule,
    )


def _eval_every(steps: int, eval_rows: int, batch_size: int) -> int:
    """Steps between evaluations: eval_rows / 2 <= (1/10) x batch_size x every."""
    return max(1, math.ceil(steps / EVALUATIONS), math.ceil(5 * eval_rows / batch_size))
