"""A pytest plugin that lists the tests that use the card; run it on the one that computes nothing.

    python -m pytest -p tests.fake_gpu.watch tests/cli

It must be loaded by `-p`: `tests.isolation` drops the variables of the card, which are kept here.
Processes that a test starts are counted when they end.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.fake_gpu import card

KEPT = {name: os.environ[name] for name in os.environ if name.startswith(("LD_", "FAKE_GPU_"))}
LOG = Path(tempfile.mkdtemp(prefix="fake-gpu-")) / "launches"
USED: dict[str, str] = {}
"""Name of each test that used the card, and how."""


def pytest_configure() -> None:
    """Put back what the tests' own environment leaves out."""
    os.environ.update(KEPT, FAKE_GPU_LOG=str(LOG))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Count launches of this process and of those that end during the test."""
    LOG.write_text("")
    before = card.counts().total
    try:
        return (yield)
    finally:
        here, elsewhere = card.counts().total - before, LOG.read_text().splitlines()
        if here or elsewhere:
            USED[item.nodeid] = f"{here:,} launches, {len(elsewhere)} processes"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the list."""
    terminalreporter.section(f"tests that used the card: {len(USED)}")
    for name, how in USED.items():
        terminalreporter.line(f"{name}: {how}")
