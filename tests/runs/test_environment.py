"""The content of environment.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import qwen_local
from qwen_local.backends.base import Setup
from qwen_local.backends.machine import Machine
from qwen_local.backends.select import Choice
from qwen_local.models.source import fetch, find_model
from qwen_local.runs.environment import environment


def environment_of(commit: str | None) -> dict[str, Any]:
    machine = Machine(
        system="Linux",
        processor="x86_64",
        mlx="0.32.4",
        metal=False,
        torch=None,
        torch_cuda=None,
        cuda=False,
        bfloat16=False,
        nvidia=False,
        driver=None,
        memory_bytes=8,
        gpu_bytes=0,
    )
    model = fetch(find_model("qwen-local/tiny"))
    setup = Setup(model=model, lora=None, device="cpu", dtype="float32", micro_batch_tokens=77)
    return environment(machine, Choice("mlx", "cpu", "a test"), setup, commit)


def test_the_environment_names_versions_hardware_and_the_commit_of_the_model() -> None:
    found = environment_of("abc")
    assert {key: found[key] for key in ("backend", "device", "dtype", "base_commit")} == {
        "backend": "mlx",
        "device": "cpu",
        "dtype": "float32",
        "base_commit": "abc",
    }
    assert (found["reason"], found["micro_batch_tokens"]) == ("a test", 77)
    assert found["hardware"] == {
        "system": "Linux",
        "processor": "x86_64",
        "memory_bytes": 8,
        "gpu": None,
        "gpu_bytes": 0,
        "driver": None,
    }
    assert found["packages"]["qwen-local"] == qwen_local.__version__
    assert found["packages"]["numpy"] is not None
    assert found["python"].startswith("3.")
    assert found["cpu_count"] == os.cpu_count()
    assert found.keys() >= {"platform", "processor", "git"}


def test_a_working_folder_without_git_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment_of(None)["git"] is None
    monkeypatch.setenv("PATH", "")
    assert environment_of(None)["git"] is None
