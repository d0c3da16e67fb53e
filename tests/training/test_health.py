"""Which runs are warned of, when, and in which words.

R1, R2, R3 and R5 are the reference runs of docs/reference-runs.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import chain, count, cycle, islice

import pytest

from qwen_local.runs.events import WarningEvent
from qwen_local.training.health import QUIET, WINDOW, Health

VOCABULARY = 151_936
FIX = "if it continues, lower train.learning_rate or set a longer train.warmup_ratio"


def trained(losses: Iterable[float], norms: Iterable[float]) -> list[WarningEvent]:
    """The concerns of a run with these losses and gradient norms."""
    health = Health(VOCABULARY)
    figures = zip(count(1), losses, norms, strict=False)
    return list(chain.from_iterable(health.stepped(*figure) for figure in figures))


def curves(train: Sequence[float], evaluations: Sequence[float]) -> list[WarningEvent]:
    """The concerns of a run evaluated before its first step and after every ten."""
    health, step = Health(VOCABULARY), 0
    concerns = health.evaluated(0, evaluations[0])
    for loss, eval_loss in zip(train, evaluations[1:], strict=True):
        for _ in range(10):
            step += 1
            concerns += health.stepped(step, loss, 1.0)
        concerns += health.evaluated(step, eval_loss)
    return concerns


# --- gradient norms ---


def test_a_norm_above_ten_times_its_running_median_is_told() -> None:
    [concern] = trained([1.0] * 21, [*[2.0, 3.0] * 10, 25.5])
    assert concern.message == (
        "step 21: gradient norm 25.5 is more than 10 times 2.5, the median of the 20 steps before; "
        + FIX
    )
    assert (concern.kind, concern.step) == ("gradient_norm", 21)
    assert concern.numbers == {"grad_norm": 25.5, "median": 2.5}
    assert trained([1.0] * 21, [*[2.0, 3.0] * 10, 25.0]) == []


def test_large_norms_are_well_where_they_are_usual() -> None:
    """R1 did well at 51 to 82; R5's fixed alarm at 10 would have rung at every step."""
    assert trained([1.5] * 60, cycle([51.0, 82.0, 66.5, 74.0])) == []


def test_no_norm_is_told_before_there_is_a_median_to_trust() -> None:
    assert trained([1.0] * 10, [*[2.0] * 9, 100.0]) == []
    assert len(trained([1.0] * 11, [*[2.0] * 10, 100.0])) == 1


def test_no_norm_is_told_that_clipping_leaves_as_it_is() -> None:
    assert trained([1.0] * 21, [*[0.01] * 20, 1.0]) == []
    assert len(trained([1.0] * 21, [*[0.01] * 20, 1.1])) == 1


def test_the_medians_follow_the_last_steps() -> None:
    half = WINDOW // 2
    assert trained([1.0] * 86, [*[100.0] * 60, *[2.0] * (half - 1), 90.0]) == []
    [concern] = trained([1.0] * 87, [*[100.0] * 60, *[2.0] * (half + 1), 90.0])
    assert concern.numbers == {"grad_norm": 90.0, "median": 2.0}
    [concern] = trained([*[6.0] * 60, *[2.0] * (half + 1), 5.0], [1.0] * 87)
    assert concern.numbers == {"loss": 5.0, "median": 2.0, "deviation": 0.0}


def test_a_burst_is_told_once_and_the_next_one_again() -> None:
    burst = [*[2.0] * 20, 100.0, 2.0, 100.0]
    for quiet, told in ((QUIET - 1, [21]), (QUIET, [21, 24 + QUIET])):
        norms = [*burst, *[2.0] * quiet, 100.0]
        assert [c.step for c in trained([1.0] * len(norms), norms)] == told


# --- losses ---


def test_a_first_loss_worse_than_guessing_is_told() -> None:
    uniform = math.log(VOCABULARY)
    [concern] = trained([12.5, 12.5], [1.0, 1.0])
    assert concern.message == (
        "step 1: loss 12.5 is above 11.93, the loss of a uniform guess among all tokens: check "
        "that the model is an instruction-tuned one with its own chat template, and data.train_on"
    )
    assert (concern.kind, concern.step) == ("worse_than_uniform", 1)
    assert concern.numbers == {"loss": 12.5, "uniform_loss": uniform}
    assert trained([uniform], [1.0]) == []


def test_a_spike_of_the_loss_is_told_once() -> None:
    losses = [*[1.0, 1.25] * 10, 4.0, 4.0, 1.0]
    [concern] = trained(losses, [1.0] * 23)
    assert concern.message == (
        "step 21: loss 4 is far above 1.125, the median of the 20 steps before; " + FIX
    )
    assert (concern.kind, concern.step) == ("loss_spike", 21)
    assert concern.numbers == {"loss": 4.0, "median": 1.125, "deviation": 0.125}


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        ([*[1.0] * 20, 2.0], "not more than a nat"),
        ([*[1.0, 1.5] * 10, 3.75], "within the ten deviations of noisy losses"),
        ([*[1.0] * 9, 9.0], "too few steps to tell"),
        ([2.0 - k / 50 for k in range(90)], "falling"),
        (list(islice(cycle([0.2, 2.0, 0.9, 1.4]), 80)), "single rows of every kind"),
    ],
)
def test_what_is_no_spike(losses: list[float], why: str) -> None:
    assert trained(losses, [1.0] * len(losses)) == [], why


def test_the_losses_of_the_reference_runs_are_well() -> None:
    r1 = ([1.65, 1.5, 1.2, 0.9, 0.7261, 0.832], [2.18, 2.0, 1.5, 1.1, 0.9, 0.79])
    r3 = ([1.1542, 0.925, 0.7703], [0.619, 0.611, 0.410])
    for losses, norms in (r1, r3):
        repeated = [loss for loss in losses for _ in range(10)]
        assert trained(repeated, [norm for norm in norms for _ in range(10)]) == []


# --- the same rows, trained and evaluated ---


def test_two_losses_of_the_same_rows_that_differ_are_told() -> None:
    """Training showed 15.5 and evaluation 95.86 in R3."""
    [concern] = Health(VOCABULARY).compared(50, 15.5, 95.86)
    assert concern.message == (
        "step 50: train loss 15.5, but 95.86 in evaluation of the same rows at the same weights, "
        "6.2 times apart: lower lora.dropout; without dropout the two cannot differ; please "
        "report that as a bug"
    )
    assert (concern.kind, concern.step) == ("train_eval_gap", 50)
    assert concern.numbers == {"train_loss": 15.5, "scored_loss": 95.86}


def test_a_train_loss_above_the_evaluation_is_told_as_one_below() -> None:
    """The smallest train loss of R2 was 15.19 beside a best evaluation of 2.836."""
    [concern] = Health(VOCABULARY).compared(50, 15.19, 2.836)
    assert "5.4 times apart" in concern.message


@pytest.mark.parametrize(
    ("train_loss", "scored_loss"),
    [(0.817, 1.045), (0.22, 0.224), (1.5, 1.0), (0.01, 0.001), (0.14, 0.002)],
)
def test_what_dropout_does_is_not_told(train_loss: float, scored_loss: float) -> None:
    assert Health(VOCABULARY).compared(50, train_loss, scored_loss) == []


def test_a_gap_is_told_when_it_begins() -> None:
    health = Health(VOCABULARY)
    pairs = [(1.0, 1.0), (2.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, 2.0)]
    told = [health.compared(step, *pair) for step, pair in enumerate(pairs)]
    assert [len(concerns) for concerns in told] == [0, 1, 0, 0, 1]


# --- overfitting ---


def test_evaluation_rising_while_training_falls_is_told() -> None:
    """R5's example of overfitting."""
    [concern] = curves([2.1, 1.4, 0.9, 0.5], [0.80, 0.76, 0.74, 0.78, 0.85])
    assert concern.message == (
        "step 40: evaluation loss rose from 0.74 at step 20 to 0.85 while train loss fell from 1.4 "
        "to 0.5: the model memorizes the training rows; take fewer train.epochs, more data, a "
        "lower lora.rank or more lora.dropout"
    )
    assert (concern.kind, concern.step) == ("overfitting", 40)
    assert concern.numbers == {
        "eval_loss": 0.85,
        "best_eval_loss": 0.74,
        "best_step": 20.0,
        "train_loss": pytest.approx(0.5),
        "train_loss_at_best": pytest.approx(1.4),
    }


def test_it_is_told_wherever_the_first_evaluation_stands() -> None:
    """The same series, its first figure being that after ten steps."""
    [concern] = curves([2.1, 1.6, 1.2, 0.8, 0.5], [3.0, 0.80, 0.76, 0.74, 0.78, 0.85])
    assert concern.step == 50


@pytest.mark.parametrize(
    ("train", "evaluations", "why"),
    [
        ([2.1, 1.7, 1.3, 0.9], [0.80, 0.76, 0.74, 0.73, 0.73], "R5's example of health"),
        ([2.1, 1.7, 1.3, 0.9], [0.80, 0.73, 0.74, 0.735, 0.738], "a plateau wavers"),
        ([2.1, 1.7, 1.3, 0.9], [3.0, 2.0, 2.035, 2.038, 2.04], "and so does a high one"),
        ([2.1, 1.7, 1.3, 0.9], [0.80, 0.73, 0.80, 0.73, 0.80], "never twice in a row"),
        ([1.0, 1.1, 1.2, 1.3], [0.80, 0.73, 0.80, 0.90, 0.99], "training gets worse, too"),
        ([0.1, 0.05, 0.03, 0.01], [0.80, 0.010, 0.015, 0.018, 0.019], "next to nothing"),
        ([2.1, 1.7, 1.3, 0.9], [0.40, 0.80, 0.76, 0.74, 0.73], "worse than before training only"),
    ],
)
def test_what_is_no_overfitting(train: list[float], evaluations: list[float], why: str) -> None:
    assert curves(train, evaluations) == [], why


def test_it_is_told_once_and_again_after_a_new_best() -> None:
    train = [2.0 - k / 10 for k in range(10)]
    evaluations = [3.0, 0.80, 0.90, 0.91, 0.92, 0.93, 0.70, 0.90, 0.91, 0.92, 0.93]
    assert [c.step for c in curves(train, evaluations)] == [30, 80]


# --- across a checkpoint ---


def test_a_resumed_run_warns_exactly_as_the_unbroken_one() -> None:
    """At every step of a run that has every concern, some of them in a spell."""
    losses = [
        12.5,
        *[1.0 - k / 100 for k in range(29)],
        *[5.0] * 3,
        *[0.5 - k / 200 for k in range(37)],
    ]
    norms = [*[2.0] * 30, *[100.0] * 3, *[2.0] * 37]

    def run(resumed_at: int | None) -> list[WarningEvent]:
        health, concerns = Health(VOCABULARY), []
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), 1):
            if step == resumed_at:
                health = Health(VOCABULARY, json.loads(json.dumps(health.state())))
            concerns += health.compared(step, loss, 5 * loss if step > 40 else loss)
            concerns += health.stepped(step, loss, norm)
            if step % 10 == 0:
                concerns += health.evaluated(step, 0.8 if step < 50 else 0.7 + step / 100)
        return concerns

    unbroken = run(None)
    assert {concern.kind for concern in unbroken} == {
        "worse_than_uniform",
        "gradient_norm",
        "loss_spike",
        "train_eval_gap",
        "overfitting",
    }
    assert len(unbroken) == 5
    for step in range(1, len(losses) + 1):
        assert run(step) == unbroken


def test_every_message_is_one_line() -> None:
    concerns = [
        *trained([12.5, *[1.0] * 20, 9.0], [*[1.0] * 21, 99.0]),
        *Health(VOCABULARY).compared(50, 15.5, 95.86),
        *curves([2.1, 1.4, 0.9, 0.5], [0.80, 0.76, 0.74, 0.78, 0.85]),
    ]
    assert len(concerns) == 5
    assert not any("\n" in concern.message for concern in concerns)
