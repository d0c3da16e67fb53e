"""Time estimated from a pass over the largest micro-batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pytest import approx

from qwen_local.job.schema import TrainSpec
from qwen_local.rows.planner import PADDED
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import Targets
from qwen_local.training.forecast import Forecast, describe, describe_error, forecast
from qwen_local.training.loop import Data
from qwen_local.training.schedule import make_schedule
from qwen_local.training.warm_up import WarmUp


def rows_of(*lengths: int) -> Rows:
    return Rows.from_pairs([([1] * n, Targets.of([1] * n)) for n in lengths])


def estimated(train: Rows, evaluation: Rows | None, spec: TrainSpec, **given: int) -> Forecast:
    """With a trial of two seconds over 100 positions."""
    eval_rows = 0 if evaluation is None else len(evaluation)
    return forecast(
        make_schedule(spec, rows=len(train), eval_rows=eval_rows),
        Data(train=train, evaluation=evaluation, train_places=[], eval_places=[]),
        spec,
        layout=PADDED,
        budget=given.get("budget", 40),
        warm_up=WarmUp(seconds=2.0, tokens=100, peak_memory_bytes=1),
        done=given.get("done", 0),
    )


SPEC = TrainSpec(epochs=3, batch_size=2, eval_every=5)


def test_a_step_costs_by_its_positions_and_an_evaluation_half_of_that() -> None:
    found = estimated(rows_of(*[10] * 10), rows_of(10, 10, 10), SPEC)
    assert (found.steps, found.evaluations) == (15, 4)
    assert found.seconds_per_step == approx(20 * 2.0 / 100)
    assert found.seconds_per_evaluation == approx(30 * 2.0 / 100 / 2)
    assert found.training_seconds == approx(15 * 0.4)
    assert found.evaluation_seconds == approx(4 * 0.3)
    assert found.seconds == approx(7.2)


def test_padding_counts() -> None:
    """Two rows of 10 and 30 are 60 positions side by side, and 40 where the budget parts them."""
    rows, spec = rows_of(10, 30), TrainSpec(epochs=1, batch_size=2)
    assert estimated(rows, None, spec, budget=60).seconds == approx(60 * 0.02)
    assert estimated(rows, None, spec, budget=59).seconds == approx(40 * 0.02)


def test_a_run_that_resumes_has_less_before_it() -> None:
    train, evaluation = rows_of(*[10] * 10), rows_of(10)
    assert estimated(train, evaluation, SPEC, done=4).steps == 11
    assert estimated(train, evaluation, SPEC, done=4).evaluations == 3
    assert estimated(train, evaluation, SPEC, done=5).evaluations == 2
    assert estimated(train, evaluation, SPEC, done=15).seconds == 0


def test_without_rows_to_evaluate_on_there_is_no_evaluation() -> None:
    assert estimated(rows_of(*[10] * 10), None, SPEC).evaluations == 0


FORECAST = Forecast(steps=100, evaluations=2, seconds_per_step=6.6, seconds_per_evaluation=30)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (1, "about 67 s: 7 of training, 60 of evaluation"),
        (0, "about 60 s: 0 of training, 60 of evaluation"),
        (100, "about 12 min: 11 of training, 1 of evaluation"),
        (1000, "about 1.9 h: 1.8 of training, 0.0 of evaluation"),
        (100_000, "about 183 h: 183 of training, 0 of evaluation"),
    ],
)
def test_time_is_told_in_the_unit_that_suits_it(steps: int, said: str) -> None:
    assert describe(replace(FORECAST, steps=steps)) == said


def test_without_evaluation_the_parts_are_not_told() -> None:
    assert describe(replace(FORECAST, evaluations=0)) == "about 11 min"


def test_the_end_says_how_far_off_time_and_memory_were() -> None:
    said = describe_error(
        FORECAST, seconds=780, planned_bytes=1_210_000_000, peak_bytes=1_150_000_000
    )
    assert said == "planned 12 min, took 13 (+8 %); planned 1.21 GB, peaked at 1.15 (-5 %)"


def test_what_was_planned_reads_at_the_end_as_it_did_at_the_beginning() -> None:
    coming = replace(FORECAST, steps=17, seconds_per_step=0.5, evaluations=0)
    assert describe(coming) == "about 8.5 s"
    for seconds, took in ((8.54, "8.5 (+0 %)"), (10.2, "10 (+20 %)"), (102, "2 min (+1100 %)")):
        said = describe_error(coming, seconds=seconds, planned_bytes=10**9, peak_bytes=10**9)
        assert said == f"planned 8.5 s, took {took}; planned 1.00 GB, peaked at 1.00 (+0 %)"


def test_of_no_time_nothing_is_off() -> None:
    none = replace(FORECAST, steps=0, evaluations=0)
    said = describe_error(none, seconds=3.21, planned_bytes=10**9, peak_bytes=10**9)
    assert said == "planned 0.0 s, took 3.2; planned 1.00 GB, peaked at 1.00 (+0 %)"
