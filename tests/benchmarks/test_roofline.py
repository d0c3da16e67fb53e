"""What a step needs, by hand; and one small measurement."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import roofline
from benchmarks.lengths import AROUND, LONGEST, WORKLOADS
from benchmarks.made_rows import made_rows
from benchmarks.peers.models import give_tokenizer
from benchmarks.peers.workloads import said
from benchmarks.roofline import Operations, measure, one_round, operations, rate_for
from qwen_local.backends.base import RowTooLargeError
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.embedded import TINY_MODEL, tiny_model_path
from qwen_local.models.families.family import Sizes
from qwen_local.models.families.qwen3 import QWEN3
from qwen_local.models.source import fetch, find_model

ARCHITECTURE = QWEN3.architecture(
    Sizes(hidden=4, intermediate=6, heads=2, kv_heads=1, head_dim=3),
    layers=2,
    vocabulary=10,
    tied=True,
    rope_theta=1e6,
    positions=64,
)
"""q 6 x 4, k and v 3 x 4, o 4 x 6, gate and up 6 x 4, down 4 x 6."""


def test_the_operations_of_a_step_are_those_counted_by_hand() -> None:
    """One row of 3 positions, 2 of them supervised, rank 1."""
    before, behind = 24 + 12 + 12, 24 + 24 + 24 + 24  # weights before and behind the attention
    forward = 3 * before + 3 * behind + 3 * before + 2 * behind  # the last block's at 2 positions
    back = forward - 3 * before  # nothing goes back through the first block's queries, keys, values
    factors_before, factors_behind = 10 + 7 + 7, 10 + 10 + 10 + 10
    factors = 3 * factors_before + 3 * factors_behind + 3 * factors_before + 2 * factors_behind
    assert operations(ARCHITECTURE, [3], 2, rank=1) == Operations(
        blocks=2 * (forward + back),
        lora=2 * (3 * factors - 3 * (3 * 4)),
        head=2 * 2 * (2 * 10 * 4),
        attention=2 * 6 * 2 * 6 * (2 * 3),  # blocks, products, and 6 pairs of positions
    )


def test_rows_are_added_up_and_attention_alone_grows_with_the_square() -> None:
    one, two, long = (
        operations(ARCHITECTURE, lengths, 0, rank=2) for lengths in ([64], [64, 64], [128])
    )
    assert two.total == 2 * one.total
    assert (long.blocks, long.lora, long.head) == (two.blocks, two.lora, 0)
    assert long.attention > 1.9 * two.attention


def test_the_rate_is_that_of_both_kinds_of_product_in_the_step_s_proportion() -> None:
    wanted = Operations(blocks=60, lora=10, head=20, attention=10)
    assert rate_for(wanted, 8.0, 8.0) == 8.0
    assert rate_for(wanted, 8.0, 2.0) == 100 / (10 + 10)


def test_a_share_is_the_step_s_rate_to_that_of_the_products_around_it() -> None:
    wanted = Operations(blocks=60, lora=10, head=20, attention=10)
    found = one_round(wanted, 5, 20.0, [(6.0, 1.0), (10.0, 3.0)])
    assert found["share"] == (100 / 20) / (100 / (80 / 8 + 20 / 2))
    assert found["tokens_per_second"] == 5 / 20


@pytest.mark.parametrize("workload", WORKLOADS)
def test_rows_have_the_lengths_of_their_workload(workload: str) -> None:
    rows = made_rows(workload, 300, np.random.default_rng(0), vocabulary=100)
    assert rows.ids_T.min() >= 2 and rows.ids_T.max() < 100
    supervised = [rows.row(r)[1].supervised for r in range(len(rows))]
    prompts = rows.lengths_R - supervised
    if workload == "code-alpaca":
        assert min(supervised) >= 9 and max(supervised) <= 301
        assert 55 < np.median(supervised) < 75
        assert prompts.min() >= 12 + 7 and prompts.max() <= 60 + 7
    elif workload == "movielens":
        assert set(supervised) == {2}
        assert prompts.min() >= 150 + 7 and prompts.max() <= 350 + 7
    else:
        assert set(rows.lengths_R) == {LONGEST - 1}  # the last token predicts nothing
        assert set(prompts) == {30 + 7}


def test_rows_of_tokens_are_as_long_as_rows_of_words(tmp_path: Path) -> None:
    shutil.copytree(tiny_model_path(), tmp_path / "model")
    give_tokenizer(tmp_path / "model")
    tokenizer = ChatTokenizer.load(tmp_path / "model")
    draw = random.Random(0)
    for drawn in WORKLOADS.values():
        asked, answered = drawn(draw)
        turns = [("user", said(draw, asked)), ("assistant", said(draw, answered))]
        [row] = tokenizer.encode_conversation([{"role": r, "content": text} for r, text in turns])
        assert len(row.ids) == asked + AROUND + answered


@pytest.mark.slow
def test_a_measurement_on_the_embedded_model_has_a_share_of_every_round() -> None:
    model = fetch(find_model(TINY_MODEL))
    found = measure(model, "code-alpaca", 2, device="cpu", rounds=2)
    share = found["share"]
    assert 0 < share["least"] <= share["median"] <= share["most"]
    assert found["gradient_checkpointing"] is False


@pytest.mark.slow
def test_a_case_that_memory_does_not_suffice_for_is_skipped_and_the_reason_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([torch.OutOfMemoryError("16 GiB"), RowTooLargeError(0, 2047), None])

    def measured(*_: Any, **__: Any) -> dict[str, float]:
        if (failure := next(failures)) is not None:
            raise failure
        return {"share": 0.5}

    monkeypatch.setattr(roofline, "make_model", lambda *_: tiny_model_path())
    monkeypatch.setattr(roofline, "measure", measured)
    assert list(roofline.measure_all("cpu", ["small"], 1, tmp_path)) == [
        {"model": "small", "skipped_because": "small: memory does not suffice for long x 1"},
        {"model": "small", "skipped_because": "small: memory does not suffice for long x 4"},
        {"model": "small", "share": 0.5},
    ]
