"""Launches, syncs and memory of a step, and the memory that `plan` expects for it.

A budget may only fall. The figures are written to `figures.json` beside the libraries;
`benchmarks/results/fake_gpu.json` is a copy.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.result import machine, write
from tests.fake_gpu.conftest import CARDS, Run

Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Steps on one card."""

    size: str
    card: str
    batch: int
    launches: int | None = None
    """Most of a step."""
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        changed = [f"{key}={value}" for key, value in self.settings.items()]
        return ", ".join([self.size, self.card, f"{self.batch} rows", *changed])


GRAPHS = {"cuda_graphs": True, "warm": 12}
"""A shape is recorded when it comes again."""
BITS_4, BITS_8 = {"quantization": "4bit"}, {"quantization": "8bit"}
CHECKPOINTING, DROPOUT = {"gradient_checkpointing": True}, {"dropout": 0.05}
BUDGETS: list[tuple[dict[str, Any], int]] = [
    ({}, 2_916),
    (BITS_8, 3_305),
    (BITS_4, 4_083),
    (DROPOUT, 3_498),
    (CHECKPOINTING, 3_982),
    (GRAPHS, 24),
    (GRAPHS | BITS_4 | DROPOUT, 25),
]
CASES = [
    *(
        Case(size="0.6B", card="RTX 3090", batch=8, launches=most, settings=settings)
        for settings, most in BUDGETS
    ),
    *(
        Case(size="1.7B", card="A800", batch=16, settings=settings)
        for settings in ({}, BITS_4, BITS_8, CHECKPOINTING)
    ),
    *(
        Case(size="8B", card="RTX 3090", batch=4, settings=settings | CHECKPOINTING)
        for settings in (BITS_4, BITS_8)
    ),
    *(
        Case(size="8B", card="H200", batch=16, settings=settings)
        for settings in ({}, BITS_4, BITS_8, CHECKPOINTING)
    ),
]
WRITTEN = ("tokens", "launches", "syncs", "host_ms", "allocated", "planned", "ratio")


@pytest.fixture(scope="module")
def table(libraries: Path) -> Iterator[dict[str, Figures]]:
    """The figures of each case, which are written at the end if none is missing."""
    found: dict[str, Figures] = {}
    yield found
    if len(found) == len(CASES):
        result = {
            "command": "make fake-gpu",
            "date": datetime.date.today().isoformat(),
            "what": "LoRA r16 on all linear layers, bfloat16, rows in the lengths of movielens; "
            "a step, host_ms the median processor time of 5",
            "machine": machine("cpu"),
            "cases": {str(case): found[str(case)] for case in CASES},
        }
        write(result, libraries / "figures.json")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_keeps_to_its_budget_and_its_plan(
    case: Case, table: dict[str, Figures], models: Path, on_card: Run
) -> None:
    job = {"size": case.size, "workload": "movielens", "batch": case.batch, **case.settings}
    ended = on_card(CARDS[case.card], "tests.fake_gpu.step", models, json.dumps(job))
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    table[str(case)] = {name: found[name] for name in WRITTEN}
    assert found["syncs"] == 1
    assert case.launches is None or found["launches"] <= case.launches, found["launches"]
    assert 0.9 <= found["ratio"] <= 1.1, (found["allocated"], found["planned"])
