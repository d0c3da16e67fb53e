"""Warnings about a run that continues although something looks wrong.

Every rule is a pure function of the losses and norms so far. Its memory fits into a checkpoint as
JSON, so that a resumed run gives the same warnings as an unbroken one. A warning is given when its
condition starts to hold, not at every step at which it holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

from qwen_local.runs.events import WarningEvent

Kind = Literal["worse_than_uniform", "gradient_norm", "loss_spike", "train_eval_gap", "overfitting"]

WINDOW = 50
"""Steps in a running median. A burst of bad steps is less than half of them and does not move it,
and it follows norms and losses as they fall during training."""

ENOUGH = 10
"""Steps before a median is trusted. The first norms of a new adapter are its smallest, because its
B matrices are zero at first and pass no gradient on to A."""

QUIET = 10
"""Steps without a condition after which the same warning is given again."""

NORM_FACTOR = 10.0
"""A gradient norm this many times its running median causes a warning. Norms have no scale of their
own: reference run R1 did well at 51 to 82 with one data set and at 0.4 to 0.6 with another."""

NORM_FLOOR = 1.0
"""The norm must also be above the default clipping norm: if the loss is almost zero, a single new
row has a norm a hundred times the median, which is harmless."""

SPIKE_NATS = 1.0
"""A loss this far above its running median is a spike: tokens are e times less likely."""

SPIKE_DEVIATIONS = 10.0
"""It must also be this many median absolute deviations above (6.7 standard deviations of normal
noise), because the losses of single short rows differ by more than a nat in a healthy run."""

GAP_FACTOR = 1.5
"""Train and evaluation loss of the same rows at the same weights differ only by dropout and
rounding: on the tiny model by a factor of 1.02 at dropout 0.05, and of 1.28 at worst (dropout 0.15,
single rows, ten times the usual learning rate). R3 calls up to 1.5 healthy on different rows; two
functions that were meant to be one differed by 6.2 there, and by 5.4 in R2."""

SMALL_LOSS = 0.1
"""Smaller losses are compared as if they were this large, because their ratio is meaningless."""

RISE_SHARE = 0.02
"""An evaluation loss this share above the lowest one is a rise, not noise on a plateau."""

RISE_NATS = 0.01
"""It must also be this many nats above, which matters if the lowest loss is near zero."""

RISES = 2
"""Consecutive rises that cause a warning."""

FIX = "if it continues, lower train.learning_rate or set a longer train.warmup_ratio"


@dataclass(kw_only=True, slots=True)
class _Memory:
    """State of the rules between steps."""

    losses: list[float] = field(default_factory=list)
    """Losses of the last `WINDOW` steps."""
    norms: list[float] = field(default_factory=list)
    """Gradient norms of the same steps."""
    last: dict[str, int] = field(default_factory=dict)
    """Last step at which each condition on a step held, by kind."""
    gap: bool = False
    """True if the last comparison of train and evaluation loss showed a gap."""
    interval_sum: float = 0.0
    """Sum of step losses since the last evaluation."""
    interval_steps: int = 0
    best_eval: float | None = None
    """Lowest evaluation loss after a step."""
    best_eval_step: int = 0
    best_train: float = 0.0
    """Mean train loss of the interval before that evaluation."""
    rises: int = 0
    """Number of latest evaluations that were a rise while train loss fell."""


class Health:
    """Checks the figures of a run as they come.

    Args:
        vocabulary: number of tokens that the model distinguishes.
        state: result of `state`, to resume from a checkpoint.
    """

    def __init__(self, vocabulary: int, state: Mapping[str, Any] | None = None) -> None:
        self._uniform = math.log(vocabulary)
        self._memory = _Memory(**state) if state is not None else _Memory()

    def state(self) -> dict[str, Any]:
        """Memory of the rules as a plain dictionary, for the constructor."""
        return asdict(self._memory)

    def stepped(self, step: int, loss: float, grad_norm: float) -> list[WarningEvent]:
        """Check a step (1 is the first) whose figures are finite."""
        memory = self._memory
        warnings = [
            *(self._worse_than_uniform(loss) if step == 1 else ()),
            *self._large_norm(step, grad_norm),
            *self._spike(step, loss),
        ]
        memory.losses = [*memory.losses, loss][-WINDOW:]
        memory.norms = [*memory.norms, grad_norm][-WINDOW:]
        memory.interval_sum += loss
        memory.interval_steps += 1
        return warnings

    def compared(self, step: int, train_loss: float, scored_loss: float) -> list[WarningEvent]:
        """Compare the loss of a step with a score of the same rows right before it."""
        memory = self._memory
        low, high = sorted(max(loss, SMALL_LOSS) for loss in (train_loss, scored_loss))
        was, memory.gap = memory.gap, high > GAP_FACTOR * low
        if was or not memory.gap:
            return []
        message = (
            f"step {step}: train loss {train_loss:.4g}, but {scored_loss:.4g} in evaluation of the "
            f"same rows at the same weights, {high / low:.1f} times apart: lower lora.dropout; "
            "without dropout the two cannot differ; please report that as a bug"
        )
        numbers = {"train_loss": train_loss, "scored_loss": scored_loss}
        return [WarningEvent(kind="train_eval_gap", step=step, message=message, numbers=numbers)]

    def evaluated(self, step: int, eval_loss: float) -> list[WarningEvent]:
        """Check an evaluation; the one before the first step has no train loss to compare with."""
        memory = self._memory
        if not memory.interval_steps:
            return []
        train_loss = memory.interval_sum / memory.interval_steps
        memory.interval_sum, memory.interval_steps = 0.0, 0
        if memory.best_eval is None or eval_loss < memory.best_eval:
            memory.best_eval, memory.best_eval_step = eval_loss, step
            memory.best_train, memory.rises = train_loss, 0
            return []
        risen = eval_loss - memory.best_eval > max(RISE_SHARE * memory.best_eval, RISE_NATS)
        if not (risen and train_loss < memory.best_train):
            memory.rises = 0
            return []
        memory.rises += 1
        if memory.rises != RISES:
            return []
        message = (
            f"step {step}: evaluation loss rose from {memory.best_eval:.4g} at step "
            f"{memory.best_eval_step} to {eval_loss:.4g} while train loss fell from "
            f"{memory.best_train:.4g} to {train_loss:.4g}: the model memorizes the training rows; "
            "take fewer train.epochs, more data, a lower lora.rank or more lora.dropout"
        )
        numbers = {
            "eval_loss": eval_loss,
            "best_eval_loss": memory.best_eval,
            "best_step": float(memory.best_eval_step),
            "train_loss": train_loss,
            "train_loss_at_best": memory.best_train,
        }
        return [WarningEvent(kind="overfitting", step=step, message=message, numbers=numbers)]

    def _worse_than_uniform(self, loss: float) -> list[WarningEvent]:
        if loss <= self._uniform:
            return []
        message = (
            f"step 1: loss {loss:.4g} is above {self._uniform:.4g}, the loss of a uniform guess "
            "among all tokens: check that the model is an instruction-tuned one with its own chat "
            "template, and data.train_on"
        )
        numbers = {"loss": loss, "uniform_loss": self._uniform}
        return [WarningEvent(kind="worse_than_uniform", step=1, message=message, numbers=numbers)]

    def _large_norm(self, step: int, norm: float) -> list[WarningEvent]:
        norms = self._memory.norms
        if len(norms) < ENOUGH:
            return []
        middle = median(norms)
        if norm <= max(NORM_FLOOR, NORM_FACTOR * middle):
            return []
        if not self._starts("gradient_norm", step):
            return []
        message = (
            f"step {step}: gradient norm {norm:.4g} is more than {NORM_FACTOR:g} times "
            f"{middle:.4g}, the median of the {len(norms)} steps before; {FIX}"
        )
        numbers = {"grad_norm": norm, "median": middle}
        return [WarningEvent(kind="gradient_norm", step=step, message=message, numbers=numbers)]

    def _spike(self, step: int, loss: float) -> list[WarningEvent]:
        losses = self._memory.losses
        if len(losses) < ENOUGH:
            return []
        middle, deviation = _middle_and_deviation(losses)
        if loss - middle <= max(SPIKE_NATS, SPIKE_DEVIATIONS * deviation):
            return []
        if not self._starts("loss_spike", step):
            return []
        message = (
            f"step {step}: loss {loss:.4g} is far above {middle:.4g}, the median of the "
            f"{len(losses)} steps before; {FIX}"
        )
        numbers = {"loss": loss, "median": middle, "deviation": deviation}
        return [WarningEvent(kind="loss_spike", step=step, message=message, numbers=numbers)]

    def _starts(self, kind: Kind, step: int) -> bool:
        """Note that a condition holds at this step; True if it did not hold shortly before."""
        before = self._memory.last.get(kind)
        self._memory.last[kind] = step
        return before is None or step - before > QUIET


def _middle_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the median, and the median of absolute deviations from it."""
    middle = median(values)
    return middle, median(abs(value - middle) for value in values)
