"""What looks wrong with a run that nevertheless goes on: warnings, each said when it begins.

Every rule is a pure function of the losses and norms so far. What it must remember fits a
checkpoint as JSON, so that a resumed run warns exactly as the unbroken one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

Kind = Literal["worse_than_uniform", "gradient_norm", "loss_spike", "train_eval_gap", "overfitting"]

WINDOW = 50
"""Steps that a running median looks back on: a burst of bad steps is less than half of them and
does not move it, and it follows norms and losses as they fall with training."""

ENOUGH = 10
"""Steps before a median is trusted. A new adapter's first norms are its smallest, since half of it
is zero then and passes no gradient on to the other half."""

QUIET = 10
"""Steps without a concern after which the same one is news again."""

NORM_FACTOR = 10.0
"""A gradient norm this many times its running median is a concern. Norms have no scale of their
own: reference run R1 did well at 51 to 82 with one data set and at 0.4 to 0.6 with another."""

NORM_FLOOR = 1.0
"""And it must be above the norm that gradients are clipped to by default: where the loss is almost
zero a single new row has a norm a hundred times the median, and disturbs nothing."""

SPIKE_NATS = 1.0
"""A loss this far above its running median is a spike: tokens e times less likely than before."""

SPIKE_DEVIATIONS = 10.0
"""And this many median absolute deviations, 6.7 standard deviations of normal noise, because the
losses of single short rows differ by more than a nat in good health."""

GAP_FACTOR = 1.5
"""Train and evaluation loss of the same rows at the same weights differ by dropout and rounding
alone: on the tiny model by a factor of 1.02 at dropout 0.05, and of 1.28 at worst (dropout 0.15,
single rows, ten times the usual learning rate). R3 calls up to 1.5 healthy on different rows; two
functions that were meant to be one differed by 6.2 there, and by 5.4 in R2."""

SMALL_LOSS = 0.1
"""Losses below are compared as if they were this: there a ratio says nothing."""

RISE_SHARE = 0.02
"""An evaluation this share above the lowest loss is a rise and not the wavering of a plateau."""

RISE_NATS = 0.01
"""And at least this many nats, which matters where the lowest loss is near zero."""

RISES = 2
"""Such evaluations in a row that are a concern."""

CALMER = "if it goes on, lower train.learning_rate or set a longer train.warmup_ratio"


@dataclass(frozen=True, kw_only=True, slots=True)
class Concern:
    """One warning."""

    kind: Kind
    step: int
    message: str
    """One line, with the figures and what to do."""
    numbers: Mapping[str, float]
    """The same figures for a program."""


@dataclass(kw_only=True, slots=True)
class _Memory:
    """What the rules remember."""

    losses: list[float] = field(default_factory=list)
    """Of the last `WINDOW` steps."""
    norms: list[float] = field(default_factory=list)
    """Gradient norms of the same steps."""
    last: dict[str, int] = field(default_factory=dict)
    """For each kind that comes and goes with the steps: the last step that it held at."""
    gap: bool = False
    """Whether the last comparison showed one."""
    interval_sum: float = 0.0
    """Sum of the losses of the steps since the last evaluation."""
    interval_steps: int = 0
    best_eval: float | None = None
    """Lowest evaluation loss after a step."""
    best_eval_step: int = 0
    best_train: float = 0.0
    """Mean train loss of the interval that ended with it."""
    rises: int = 0
    """Evaluations in a row, up to the last, that lay clearly above it while training got on."""


class Health:
    """Looks at a run's figures as they come.

    Args:
        vocabulary: entries that the model chooses between.
        state: what `state` gave, to go on from a checkpoint.
    """

    def __init__(self, vocabulary: int, state: Mapping[str, Any] | None = None) -> None:
        self._uniform = math.log(vocabulary)
        self._memory = _Memory(**state) if state is not None else _Memory()

    def state(self) -> dict[str, Any]:
        """What is remembered: a plain dictionary, to be given to the constructor."""
        return asdict(self._memory)

    def stepped(self, step: int, loss: float, grad_norm: float) -> list[Concern]:
        """After a step, 1 being the first; both figures are finite, or the run has ended."""
        memory = self._memory
        concerns = [
            *(self._worse_than_uniform(loss) if step == 1 else ()),
            *self._large_norm(step, grad_norm),
            *self._spike(step, loss),
        ]
        memory.losses = [*memory.losses, loss][-WINDOW:]
        memory.norms = [*memory.norms, grad_norm][-WINDOW:]
        memory.interval_sum += loss
        memory.interval_steps += 1
        return concerns

    def compared(self, step: int, train_loss: float, scored_loss: float) -> list[Concern]:
        """After the rows of a step were scored right before it, so at the same weights."""
        memory = self._memory
        low, high = sorted(max(loss, SMALL_LOSS) for loss in (train_loss, scored_loss))
        was, memory.gap = memory.gap, high > GAP_FACTOR * low
        if was or not memory.gap:
            return []
        message = (
            f"step {step}: train loss {train_loss:.4g}, but {scored_loss:.4g} in evaluation of the "
            f"same rows at the same weights, {high / low:.1f} times apart: lower lora.dropout; "
            "without dropout the two cannot differ, and this is a fault worth reporting"
        )
        numbers = {"train_loss": train_loss, "scored_loss": scored_loss}
        return [Concern(kind="train_eval_gap", step=step, message=message, numbers=numbers)]

    def evaluated(self, step: int, eval_loss: float) -> list[Concern]:
        """After an evaluation; the one before the first step has no training to be held against."""
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
            f"{memory.best_train:.4g} to {train_loss:.4g}: the rows are being learned by heart; "
            "take fewer train.epochs, more data, a lower lora.rank or more lora.dropout"
        )
        numbers = {
            "eval_loss": eval_loss,
            "best_eval_loss": memory.best_eval,
            "best_step": float(memory.best_eval_step),
            "train_loss": train_loss,
            "train_loss_at_best": memory.best_train,
        }
        return [Concern(kind="overfitting", step=step, message=message, numbers=numbers)]

    def _worse_than_uniform(self, loss: float) -> list[Concern]:
        if loss <= self._uniform:
            return []
        message = (
            f"step 1: loss {loss:.4g} is above {self._uniform:.4g}, what guessing among all tokens "
            "would have: check that the model is an instruction-tuned one with its own chat "
            "template, and what data.train_on trains"
        )
        numbers = {"loss": loss, "uniform_loss": self._uniform}
        return [Concern(kind="worse_than_uniform", step=1, message=message, numbers=numbers)]

    def _large_norm(self, step: int, norm: float) -> list[Concern]:
        norms = self._memory.norms
        if len(norms) < ENOUGH:
            return []
        middle = median(norms)
        if norm <= max(NORM_FLOOR, NORM_FACTOR * middle):
            return []
        if not self._begins("gradient_norm", step):
            return []
        message = (
            f"step {step}: gradient norm {norm:.4g} is more than {NORM_FACTOR:g} times "
            f"{middle:.4g}, the median of the {len(norms)} steps before; {CALMER}"
        )
        numbers = {"grad_norm": norm, "median": middle}
        return [Concern(kind="gradient_norm", step=step, message=message, numbers=numbers)]

    def _spike(self, step: int, loss: float) -> list[Concern]:
        losses = self._memory.losses
        if len(losses) < ENOUGH:
            return []
        middle, deviation = _middle_and_deviation(losses)
        if loss - middle <= max(SPIKE_NATS, SPIKE_DEVIATIONS * deviation):
            return []
        if not self._begins("loss_spike", step):
            return []
        message = (
            f"step {step}: loss {loss:.4g} is far above {middle:.4g}, the median of the "
            f"{len(losses)} steps before; {CALMER}"
        )
        numbers = {"loss": loss, "median": middle, "deviation": deviation}
        return [Concern(kind="loss_spike", step=step, message=message, numbers=numbers)]

    def _begins(self, kind: Kind, step: int) -> bool:
        """Note that a concern holds at this step; whether that is news."""
        before = self._memory.last.get(kind)
        self._memory.last[kind] = step
        return before is None or step - before > QUIET


def _middle_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Median, and median of the absolute deviations from it."""
    middle = median(values)
    return middle, median(abs(value - middle) for value in values)
