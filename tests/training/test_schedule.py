"""Steps, learning rates and evaluations, against the reference runs and transformers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from qwen_local.job.schema import TrainSpec
from qwen_local.training.schedule import Schedule, make_schedule


def schedule(rows: int = 8, eval_rows: int = 0, **train: Any) -> Schedule:
    return make_schedule(TrainSpec(**train), rows=rows, eval_rows=eval_rows)


# --- the learning rate ---


def test_six_steps_without_warm_up_fall_linearly_as_in_run_1_of_r1() -> None:
    """R1 prints 1.2e-4 for the fourth step, where its own linear schedule gives 1.0e-4."""
    linear = schedule(
        steps=6, learning_rate=2e-4, schedule="linear", warmup_ratio=None, warmup_steps=0
    )
    printed = [2e-4, 1.7e-4, 1.3e-4, 1.0e-4, 6.7e-5, 3.3e-5]
    assert [linear.learning_rate(k) for k in range(6)] == approx(printed, rel=0.03)


def test_warm_up_and_decline_are_those_of_run_3_of_r1() -> None:
    """100 rows in batches of 8 for 3 epochs; R1 logs the rates after 9, 19 and 29 steps."""
    linear = schedule(
        rows=100, epochs=3, batch_size=8, learning_rate=2e-4, schedule="linear", warmup_steps=10
    )
    assert (linear.steps, linear.steps_per_epoch, linear.warmup) == (39, 13, 10)
    printed = {9: 1.8e-4, 19: 1.38e-4, 29: 6.9e-5}
    for k, rate in printed.items():
        assert linear.learning_rate(k) == approx(rate, rel=0.005)


def test_optimizer_steps_are_counted_and_not_batches_as_r3_did() -> None:
    """74,823 batches are 4,676 steps of 16; batch 1,999 belongs to the one that follows 124."""
    assert (74_823 // 16, 1_999 // 16) == (4_676, 124)
    run = schedule(steps=4_676, warmup_ratio=0.1, learning_rate=3e-5)
    assert run.warmup == 467
    assert run.learning_rate(124) == approx(7.96e-6, abs=1e-8)


def test_r4_takes_a_step_a_row_and_warms_up_over_three_percent_of_them() -> None:
    run = schedule(rows=78_271, batch_size=1, epochs=3, warmup_ratio=0.03, learning_rate=1.5e-4)
    assert (run.steps, run.warmup) == (234_813, 7_044)


def test_the_cosine_goes_from_the_peak_to_zero_through_one_half() -> None:
    cosine = schedule(steps=110, warmup_steps=10, learning_rate=4e-4)
    assert cosine.learning_rate(0) == 0.0
    assert cosine.learning_rate(10) == 4e-4
    assert cosine.learning_rate(60) == approx(2e-4)
    assert 0 < cosine.learning_rate(109) < 1e-7
    assert cosine.learning_rate(110) == approx(0.0, abs=1e-18)


@pytest.mark.parametrize("warmup", [0, 1, 9, 57, 80])
@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_every_rate_of_a_run_is_that_of_transformers(shape: str, warmup: int) -> None:
    import torch
    import transformers

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    name = "constant_with_warmup" if shape == "constant" else shape
    theirs = transformers.get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=57
    )
    ours = schedule(steps=57, warmup_steps=warmup, learning_rate=3e-4, schedule=shape)
    for k in range(57):
        assert ours.learning_rate(k) == approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-20), k
        optimizer.step()
        theirs.step()


# --- steps ---


def test_the_last_step_of_an_epoch_takes_the_rows_that_are_left() -> None:
    run = schedule(rows=21, batch_size=8, epochs=2)
    assert (run.steps, run.steps_per_epoch, run.trained_rows) == (6, 3, 42)


def test_steps_instead_of_epochs_may_end_inside_an_epoch() -> None:
    run = schedule(rows=21, batch_size=8, steps=5)
    assert (run.steps, run.steps_per_epoch, run.trained_rows) == (5, 3, 21 + 16)


# --- evaluation ---


def test_evaluation_follows_every_nth_step_and_the_last() -> None:
    run = schedule(steps=10, eval_rows=4, eval_every=4)
    assert [step for step in range(1, 11) if run.evaluates_after(step)] == [4, 8, 10]
    assert run.evaluations == 4  # the one before the first step, too


def test_a_run_that_is_evaluated_more_rarely_than_it_has_steps_is_evaluated_at_its_end() -> None:
    run = schedule(steps=10, eval_rows=4, eval_every=50)
    assert [step for step in range(1, 11) if run.evaluates_after(step)] == [10]
    assert run.evaluations == 2


def test_without_eval_rows_nothing_is_evaluated() -> None:
    run = schedule(steps=10, eval_rows=0, eval_every=2)
    assert not any(run.evaluates_after(step) for step in range(1, 11))
    assert (run.evaluations, run.evaluation_share) == (0, 0.0)


def test_a_row_counts_half_in_evaluation_of_what_it_counts_in_training() -> None:
    run = schedule(rows=100, batch_size=10, epochs=1, eval_rows=20, eval_every=5)
    assert run.evaluations == 3  # 3 x 20 rows at half the price, against 100
    assert run.evaluation_share == approx(30 / 130)


def test_the_evaluation_that_nobody_counted_in_r4_is_seen_in_its_share() -> None:
    """R4: every 200 steps, 4,450 rows. There it came to 164-184 hours on top of 27-33."""
    run = schedule(rows=78_271, batch_size=1, epochs=3, eval_rows=4_450, eval_every=200)
    assert run.evaluations - 1 == 1_175  # R4 counts 1,174, without the one after the last step
    assert run.evaluation_share > 0.9


SIZES = {
    "rows": st.integers(1, 100_000),
    "eval_rows": st.integers(1, 20_000),
    "batch_size": st.integers(1, 64),
    "epochs": st.integers(1, 8),
}


@given(**SIZES)
def test_automatic_evaluation_takes_a_tenth_of_the_time_at_most(
    rows: int, eval_rows: int, batch_size: int, epochs: int
) -> None:
    """The first and the last evaluation always take place, even if those two cost more."""
    run = schedule(rows, eval_rows, batch_size=batch_size, epochs=epochs)
    assert run.evaluation_share <= 0.1 or run.evaluations == 2
    assert 2 <= run.evaluations <= 21


@given(**SIZES)
def test_automatic_evaluation_is_as_frequent_as_that_allows(
    rows: int, eval_rows: int, batch_size: int, epochs: int
) -> None:
    run = schedule(rows, eval_rows, batch_size=batch_size, epochs=epochs)
    if run.eval_every > 1:
        sooner = schedule(
            rows, eval_rows, batch_size=batch_size, epochs=epochs, eval_every=run.eval_every - 1
        )
        assert sooner.evaluation_share > 0.1 or sooner.evaluations > 21
