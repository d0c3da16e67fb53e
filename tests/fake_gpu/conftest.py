"""Runs programs on the card that computes nothing. `make fake-gpu` builds it and runs these tests.

The processes that tests start are on the card, not the tests themselves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fake_gpu.card import environment
from tests.fake_gpu.models import zero_model

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Card:
    """A card by compute capability and bytes."""

    capability: str
    memory: float


CARDS = {
    "T4": Card("7.5", 16e9),
    "RTX 3090": Card("8.6", 24e9),
    "A800": Card("8.0", 80e9),
    "H200": Card("9.0", 141e9),
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder as slow: it starts processes that take seconds."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def libraries() -> Path:
    """The built libraries, which `make fake-gpu` names."""
    return Path(os.environ["QWEN_LOCAL_FAKE_GPU"]).resolve()


@pytest.fixture(scope="session")
def models(libraries: Path) -> Path:
    """A folder for models of zeros, kept between runs."""
    return libraries / "models"


@pytest.fixture(scope="session")
def model(models: Path) -> Path:
    """Qwen3-0.6B with weights of zero."""
    return zero_model("0.6B", models)


@pytest.fixture
def on_card(libraries: Path, tmp_path: Path) -> Run:
    """(card, *words, stdin="", **variables) -> how `python -m WORDS` ends in an empty folder."""

    def run(card: Card, *words: str | Path, stdin: str = "", **more: str) -> Ended:
        ended = subprocess.run(
            [sys.executable, "-m", *map(str, words)],
            cwd=tmp_path,
            env=environment(
                libraries,
                capability=card.capability,
                memory=card.memory,
                HF_HUB_OFFLINE="1",
                PYTHONPATH=str(ROOT),
                **more,
            ),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture
def qwen_local(on_card: Run) -> Run:
    """(card, command, *arguments, stdin="", **variables) -> how `qwen-local` ends."""

    def run(card: Card, *words: str | Path, stdin: str = "", **more: str) -> Ended:
        return on_card(card, "qwen_local", *words, stdin=stdin, **more)

    return run
