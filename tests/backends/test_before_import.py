"""What is set before the library of an engine is loaded."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest

from qwen_local.backends import open as backends

BACKENDS = Path(backends.__file__).parent
TORCH, MLX = (str(BACKENDS / name) for name in ("cuda/before_torch.py", "mlx/before_import.py"))
VARIABLES = (
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_CPP_LOG_LEVEL"),
    *("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "MLX_ENABLE_TF32"),
)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)


def test_pytorch_can_reuse_freed_blocks_of_any_size_and_is_quiet() -> None:
    runpy.run_path(TORCH)
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == "ERROR"


def test_the_users_own_values_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:128")
    runpy.run_path(TORCH)
    assert os.environ["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:128"


@pytest.mark.parametrize(("system", "value"), [("darwin", "1"), ("linux", None)])
def test_macos_is_asked_not_to_end_work_that_delays_the_display(
    system: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    runpy.run_path(MLX)
    assert os.environ.get("AGX_RELAX_CDM_CTXSTORE_TIMEOUT") == value
    assert os.environ["MLX_ENABLE_TF32"] == "0"
