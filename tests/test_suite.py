"""The suite itself: one environment for everybody, tiers that cannot rot, engines by name."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qwen_local.backends.machine import Engine
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from tests.conftest import ENGINES, pytest_configure
from tests.isolation import isolate

USERS = ("HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "LC_", "NO_COLOR", "FORCE_COLOR", "LANG")
"""Names of variables, or beginnings of them, that would change what tests see."""


def test_no_variable_of_the_user_is_seen_by_a_test_or_by_what_it_starts() -> None:
    code = "import os; print(*sorted(os.environ.items()), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    home = os.environ["HF_HOME"]
    assert [line for line in done.stdout.splitlines() if line[2:].startswith(USERS)] == [
        f"('HF_HOME', {home!r})",
        "('LANG', 'C.UTF-8')",
    ]


def test_the_libraries_of_the_hub_read_the_environment_of_the_tests() -> None:
    from huggingface_hub import constants

    assert os.environ["HF_HOME"] == constants.HF_HOME
    assert constants.HF_HUB_OFFLINE is False


def test_what_is_not_kept_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    users = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/home/me", "LC_ALL": "C", "HTTPS_PROXY": "x"}
    monkeypatch.setattr(os, "environ", {**users, "PATH": "/bin", "PYTEST_ADDOPTS": "-x"})
    isolate()
    environment = dict(os.environ)
    assert environment.pop("HF_HOME") != "/home/me"
    assert environment == {"PATH": "/bin", "PYTEST_ADDOPTS": "-x", "LANG": "C.UTF-8"}


@pytest.mark.parametrize("name", ENGINES)
def test_a_test_that_is_not_marked_as_slow_cannot_open_an_engine(name: Engine) -> None:
    with pytest.raises(AssertionError, match=r"mark it with pytest\.mark\.slow"):
        open_backend(Choice(name, "cpu", "a test"), cast(Any, None))


def configured(engines: str) -> None:
    options = SimpleNamespace(markexpr="")
    config = SimpleNamespace(
        getoption=lambda _: engines, addinivalue_line=lambda *_: None, option=options
    )
    pytest_configure(cast(Any, config))


def test_an_engine_that_is_not_known_or_not_installed_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configured(",".join(ENGINES))
    with pytest.raises(pytest.UsageError, match="expected mlx or cuda; found 'tpu'"):
        configured("mlx,tpu")
    find = importlib.util.find_spec

    def without_mlx(name: str) -> ModuleSpec | None:
        return None if name == "mlx" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", without_mlx)
    configured("cuda")
    with pytest.raises(pytest.UsageError, match="mlx is asked for, but not installed here"):
        configured("mlx")
