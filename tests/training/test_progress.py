"""What a person sees of a run: a bar on a terminal, ten lines elsewhere, nothing when quiet."""

from __future__ import annotations

import io
import sys

import pytest

from qwen_local.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, steps: int, quiet: bool = False
) -> str:
    """What a run of so many steps writes to stderr; it is evaluated once, after the first."""
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(steps, quiet=quiet) as progress:
        for step in range(1, steps + 1):
            progress.stepped(step, loss=1 / step, rate=1e-4, tokens_per_second=1234.5)
            if step == 1:
                progress.evaluating()
                progress.evaluated(1, 0.25)
    return stream.getvalue()


def test_a_terminal_sees_a_bar_with_loss_rate_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    last = shown(Terminal(), monkeypatch, steps=4).rpartition("\r")[2]
    assert last.startswith("100%|") and "| 4/4 " in last
    assert last.endswith(", loss 0.2500, eval 0.2500 at step 1, lr 1.0e-04, 1,234 tok/s\n")


def test_a_file_sees_about_ten_lines_and_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), monkeypatch, steps=43).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *(f"step {step}/43" for step in range(4, 43, 4)),
        "step 43/43",
    ]
    assert lines[-1] == (
        "step 43/43: loss 0.0233, eval 0.2500 at step 1, lr 1.0e-04, 1,234 tok/s, 0 s left"
    )


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_quiet_is_quiet(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(stream(), monkeypatch, steps=20, quiet=True) == ""


def test_a_stream_that_went_away_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    assert shown(Gone(), monkeypatch, steps=3) == ""


def test_a_resumed_run_begins_where_it_stood_and_counts_its_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(10, quiet=False, done=7) as progress:
        for step in (8, 9):
            progress.stepped(step, loss=1.0, rate=1e-4, tokens_per_second=100.0)
    assert [line.rpartition(", ")[2] for line in stream.getvalue().splitlines()] == [
        "20 s left",
        "10 s left",
    ]


def test_what_came_before_the_first_step_is_no_time_of_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 100.0, 101.0])  # made; the first step begins; it is done
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(10, quiet=False) as progress:
        progress.evaluating()
        progress.evaluated(0, 2.0)
        progress.start()
        progress.stepped(1, loss=1.0, rate=1e-4, tokens_per_second=100.0)
    assert stream.getvalue() == (
        "step 1/10: loss 1.0000, eval 2.0000 at step 0, lr 1.0e-04, 100 tok/s, 9 s left\n"
    )


def test_nor_is_it_for_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(10, quiet=False) as progress:
        progress.evaluating()
        now = 100.0
        progress.start()
        now = 110.0
        progress.stepped(1, loss=1.0, rate=1e-4, tokens_per_second=100.0)
    assert "| 1/10 00:10<01:30, loss" in stream.getvalue()


def test_the_bar_of_a_resumed_run_begins_where_it_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(10, quiet=False, done=7) as progress:
        progress.stepped(8, loss=1.0, rate=1e-4, tokens_per_second=100.0)
    bars = stream.getvalue().split("\r")
    assert bars[1].startswith(" 70%|") and bars[-1].startswith(" 80%|")
