"""The profile of a step on MLX, which runs on a CPU as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.metal import step
from qwen_local.embedded import tiny_model_path

pytestmark = pytest.mark.slow


def test_a_step_is_measured_with_its_shapes_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "make_model", lambda *_: tiny_model_path())
    monkeypatch.setattr(step, "TOKENS", {"cpu": (128,)})
    figure, check = step.step_costs("cpu", tmp_path)
    assert 0 < figure["host_ms"] <= figure["step_ms"] <= figure["longest_step_ms"]
    assert 1 <= figure["shapes"] <= step.WARM_UP + step.MEASURED
    assert 0 < figure["active_bytes"] <= figure["peak_memory_bytes"]
    assert figure["cache_limit_bytes"] == 8 << 20
    assert check["holds"]


def test_steps_without_a_loss_fail_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any) -> dict[str, Any]:
        return {"losses": [0.0, float("nan"), 1.0]}

    monkeypatch.setattr(step, "make_model", lambda *_: tiny_model_path())
    monkeypatch.setattr(step, "_measured", measured)
    _, check = step.step_costs("cpu", tmp_path)
    assert (check["value"], check["holds"]) == (2, False)
