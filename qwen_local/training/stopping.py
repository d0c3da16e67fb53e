"""Early stopping: a run ends when its evaluation loss no longer falls.

An evaluation is a gain if its loss is more than `min_delta` below the loss of the last gain; the
first evaluation after a step is one. `patience` evaluations in a row without a gain end the run.
They count only after one epoch or a tenth of the steps, whichever is earlier, so that a slow start
ends nothing. The evaluation before the first step is ignored, so that a base model that happens to
score well on the new data cannot end the run that is meant to change it.
"""

from __future__ import annotations

import math

from qwen_local.job.schema import EarlyStopping
from qwen_local.runs.state import Patience
from qwen_local.training.schedule import Schedule


def counts(schedule: Schedule, step: int) -> bool:
    """True if an evaluation after this step may contribute to ending the run."""
    return step >= min(schedule.steps_per_epoch, math.ceil(schedule.steps / 10))


def after(
    patience: Patience, spec: EarlyStopping, schedule: Schedule, step: int, loss: float
) -> Patience:
    """Update the patience after an evaluation.

    Args:
        patience: the value before it.
        spec: the two numbers of the rule.
        schedule: of the run.
        step: optimizer steps done; 0 changes nothing.
        loss: evaluation loss, in nats per token.
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
    """True if the run must end."""
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
