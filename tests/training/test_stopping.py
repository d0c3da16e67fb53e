"""When a run ends before its last step."""

from __future__ import annotations

import pytest

from qwen_local.job.schema import EarlyStopping, TrainSpec
from qwen_local.runs.state import Patience
from qwen_local.training.schedule import Schedule, make_schedule
from qwen_local.training.stopping import after, counts, exhausted, stopped_because

LONG = make_schedule(TrainSpec(epochs=2, batch_size=1, eval_every=10), rows=100, eval_rows=5)
"""200 steps, an epoch of 100, a tenth of 20."""
ONE_EPOCH = make_schedule(TrainSpec(epochs=50, batch_size=1, eval_every=1), rows=2, eval_rows=5)
"""100 steps, an epoch of 2, a tenth of 10."""


def ends_at(
    losses: list[float], schedule: Schedule = LONG, *, patience: int = 3, min_delta: float = 0.0
) -> int | None:
    """The step of the evaluation that ends a run with these losses, the first being of step 0."""
    spec, left = EarlyStopping(patience=patience, min_delta=min_delta), Patience()
    for evaluation, loss in enumerate(losses):
        left = after(left, spec, schedule, evaluation * schedule.eval_every, loss)
        if exhausted(left, spec):
            return evaluation * schedule.eval_every
    return None


def test_three_evaluations_in_a_row_without_a_gain_end_the_run() -> None:
    assert ends_at([9.0, 0.8, 0.7, 0.6, 0.7, 0.7, 0.7]) == 60
    assert ends_at([9.0, 0.8, 0.7, 0.6, 0.7, 0.7]) is None


def test_a_gain_begins_the_count_anew() -> None:
    assert ends_at([9.0, 0.8, 0.9, 0.9, 0.7, 0.9, 0.9, 0.9]) == 70


def test_an_equal_loss_is_no_gain() -> None:
    assert ends_at([9.0, 0.8, 0.8, 0.8, 0.8]) == 40


def test_the_evaluation_before_the_first_step_is_never_the_one_to_beat() -> None:
    assert ends_at([0.1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]) is None


def test_only_evaluations_after_a_tenth_of_the_steps_count() -> None:
    assert [counts(LONG, step) for step in (0, 10, 19, 20, 30)] == [False, False, False, True, True]
    assert ends_at([9.0, 0.6, 0.7, 0.7, 0.7]) == 40
    every_step = make_schedule(
        TrainSpec(epochs=2, batch_size=1, eval_every=1), rows=100, eval_rows=5
    )
    assert ends_at([9.0, 0.6, *[0.7] * 30], every_step) == 22


def test_or_after_one_epoch_where_that_is_earlier() -> None:
    assert [counts(ONE_EPOCH, step) for step in (1, 2, 3)] == [False, True, True]
    assert ends_at([9.0, 0.6, 0.7, 0.7, 0.7], ONE_EPOCH) == 4


def test_an_early_loss_is_the_one_to_beat_though_it_does_not_count() -> None:
    assert ends_at([9.0, 0.6, 0.61, 0.61, 0.61], patience=1) == 20


def test_a_fall_of_min_delta_or_less_is_no_gain() -> None:
    assert ends_at([9.0, 1.0, 0.9, 0.8, 0.7, 0.6], min_delta=0.125, patience=1) == 20
    assert ends_at([9.0, 1.0, 0.75, 0.5, 0.25], min_delta=0.25, patience=1) == 20
    assert ends_at([9.0, 1.0, 0.75, 0.5, 0.25], min_delta=0.125, patience=1) is None


def test_small_falls_add_up_to_a_gain() -> None:
    """Each is measured against the last gain and not against the evaluation before."""
    assert ends_at([9.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], min_delta=0.15, patience=2) is None


@pytest.mark.parametrize(
    ("spec", "without_gain", "said"),
    [
        (
            EarlyStopping(patience=3),
            3,
            "early stopping: 3 evaluations in a row without a gain, best at step 40",
        ),
        (
            EarlyStopping(patience=1),
            1,
            "early stopping: 1 evaluation without a gain, best at step 40",
        ),
        (
            EarlyStopping(patience=2, min_delta=0.01),
            2,
            "early stopping: 2 evaluations in a row without a gain of more than 0.01, "
            "best at step 40",
        ),
    ],
)
def test_the_reason_is_said_with_its_figures(
    spec: EarlyStopping, without_gain: int, said: str
) -> None:
    patience = Patience(reference=0.5, without_gain=without_gain)
    assert stopped_because(patience, spec, 40) == said
