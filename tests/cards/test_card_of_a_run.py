"""The README.md that a run leaves beside its adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_local.job.schema import read_job
from qwen_local.runs.events import AdapterEvent, EvalEvent, read_events
from qwen_local.training import run as runs
from qwen_local.training.run import train

pytestmark = pytest.mark.slow

SETS = ("data.limit=40", "data.eval_fraction=0.1", "train.steps=2", "train.batch_size=4")


def short_run(folder: Path, *, resume: str | None = None, steps: int = 2) -> None:
    sets = [*SETS, f"train.steps={steps}"]
    draft = read_job(None, sets=sets, flags={"output": str(folder)})
    train(draft, backend="cuda", device="cpu", resume=resume)


def test_a_run_leaves_a_model_card_with_its_own_figures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    short_run(run)
    said = (run / "adapter/README.md").read_text("utf-8")
    best = list(read_events(run / "metrics.jsonl", AdapterEvent))[-1].step
    losses = {e.step: e.loss for e in read_events(run / "metrics.jsonl", EvalEvent)}
    data = json.loads((run / "data.json").read_text())
    assert f"- 2 optimizer steps; this adapter was saved at step {best}\n" in said
    assert (
        f"- evaluation loss: {losses[0]:.4f} before training, {losses[best]:.4f} with this "
        f"adapter, {losses[2]:.4f} at the end\n"
    ) in said
    assert f"SHA-256 `{data['sources'][0]['sha256']}`" in said
    assert data["template_sha256"] in said
    assert "The license of the base model is `apache-2.0`." in said
    assert str(tmp_path) not in said
    assert not [message for message in caplog.messages if "model card" in message]


def test_a_run_that_goes_on_leaves_a_new_card(tmp_path: Path) -> None:
    short_run(tmp_path / "run")
    short_run(tmp_path / "run", resume="", steps=3)
    assert "\n- 3 optimizer steps; " in (tmp_path / "run/adapter/README.md").read_text("utf-8")


def test_a_run_that_was_killed_before_its_end_was_written_has_a_card(tmp_path: Path) -> None:
    short_run(tmp_path / "run")
    card, metrics = tmp_path / "run/adapter/README.md", tmp_path / "run/metrics.jsonl"
    before = card.read_text("utf-8")
    lines = metrics.read_text("utf-8").splitlines(keepends=True)
    assert '"event": "end"' in lines[-1]
    metrics.write_text("".join(lines[:-1]), "utf-8")
    card.unlink()
    short_run(tmp_path / "run", resume="")
    assert card.read_text("utf-8") == before


def test_a_card_that_cannot_be_written_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(runs, "card_facts", broken)
    with caplog.at_level("INFO", logger="qwen_local"):
        short_run(tmp_path / "run")
    folder = tmp_path / "run/adapter"
    assert sorted(path.name for path in folder.iterdir()) == ["mlx", "peft"]
    assert f"warning: {folder} has no model card: a bug of ours" in caplog.messages
