"""Early stopping: a run ends where its evaluation loss has stopped falling.

An evaluation is a gain where its loss lies more than `min_delta` below the loss of the last gain;
the first evaluation after a step is one. `patience` evaluations in a row without a gain end the
run. They count only after one epoch or a tenth of the steps, whichever comes first, so that a slow
start ends nothing; and the evaluation before the first step plays no part, so that a base model
that happens to score well on the new data cannot end the run that is to change it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from qwen_local.job.schema import EarlyStopping
from qwen_local.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """What early stopping has seen so far."""

    reference: float | None = None
    """Evaluation loss of the last gain; None before there was one."""
    without_gain: int = 0
    """Evaluations that counted and were no gain, since the last gain."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(**fields)


def counts(schedule: Schedule, step: int) -> bool:
    """Whether an evaluation after this step may bring the end nearer."""
    return step >= min(schedule.steps_per_epoch, math.ceil(schedule.steps / 10))


def after(
    patience: Patience, spec: EarlyStopping, schedule: Schedule, step: int, loss: float
) -> Patience:
    """The patience that is left after an evaluation.

    Args:
        patience: what was left before it.
        spec: the rule's two numbers.
        schedule: of the run.
        step: optimizer steps done; 0 changes nothing.
        loss: of the evaluation, in nats a token.
    """
    if step == 0:
        return patience
    if patience.reference is None or loss < patience.reference - spec.min_delta:
        return Patience(reference=loss)
    return Patience(
        reference=patience.reference,
        without_gain=patience.without_gain + counts(schedule, step),
    )


def exhausted(patience: Patience, spec: EarlyStopping) -> bool:
    """Whether the run is to end."""
    return patience.without_gain >= spec.patience


def stopped_because(patience: Patience, spec: EarlyStopping, best_step: int) -> str:
    """The reason in words, for the result.

    >>> stopped_because(Patience(reference=0.7, without_gain=3), EarlyStopping(), 40)
    'early stopping: 3 evaluations in a row without a gain, best at step 40'
    """
    in_a_row = (
        "1 evaluation"
        if patience.without_gain == 1
        else f"{patience.without_gain} evaluations in a row"
    )
    gain = f"a gain of more than {spec.min_delta:g}" if spec.min_delta else "a gain"
    return f"early stopping: {in_a_row} without {gain}, best at step {best_step}"
