"""What a run says of itself at its end."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from qwen_local.runs.state import TrainState
from qwen_local.training.loop import ALL_STEPS
from qwen_local.training.messages import report_outcome


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (1.5, "1.5000, best at step 4"),
        (2.5, "2.5000, best at step 4, which is no better than before training"),
        (2.0, "2.0000, best at step 4, which is no better than before training"),
    ],
)
def test_a_run_that_made_nothing_better_says_so(
    best: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    end = TrainState(
        step=8,
        seconds=1.0,
        first_loss=1.0,
        last_loss=1.0,
        first_eval_loss=2.0,
        best_step=4,
        best_eval_loss=best,
    )
    with caplog.at_level(logging.INFO, logger="qwen_local"):
        report_outcome(TrainState(), end, ALL_STEPS, Path("run"))
    assert caplog.messages[0] == (
        f"done in 1.0 s: first-step loss 1.0000, last-step loss 1.0000; eval loss 2.0000 -> {said}"
    )


def test_a_resumed_run_says_how_much_of_its_time_is_of_now(
    caplog: pytest.LogCaptureFixture,
) -> None:
    start = TrainState(step=6, seconds=15.5, evaluation_seconds=2.0)
    end = TrainState(step=8, seconds=19.0, evaluation_seconds=3.0, first_loss=2.0, last_loss=1.0)
    with caplog.at_level(logging.INFO, logger="qwen_local"):
        report_outcome(start, end, ALL_STEPS, Path("run"))
    assert caplog.messages[0] == (
        "done in 22 s, 4.5 s of them now: first-step loss 2.0000, last-step loss 1.0000"
    )
