"""What a run says of itself at its end."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from qwen_local.training.loop import Outcome
from qwen_local.training.run import _say_outcome


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (1.5, "1.5000, best at step 4"),
        (2.5, "2.5000, best at step 4, which is worse than before training"),
    ],
)
def test_a_run_that_made_things_worse_says_so(
    best: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = Outcome(
        steps=8,
        train_loss=1.0,
        first_loss=1.0,
        last_loss=1.0,
        best_step=4,
        first_eval_loss=2.0,
        best_eval_loss=best,
        eval_loss=best,
        supervised_tokens=1,
        seconds=1.0,
        tokens=1,
    )
    with caplog.at_level(logging.INFO, logger="qwen_local"):
        _say_outcome(outcome, Path("run"))
    assert caplog.messages[0] == (
        "done in 1 s: loss of the first step 1.0000, of the last 1.0000; "
        f"eval loss 2.0000 -> {said}"
    )
