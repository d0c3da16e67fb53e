"""What a step needs, by hand; and one small measurement."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.made_rows import LONGEST, WORKLOADS, made_rows
from benchmarks.roofline import Operations, measure, one_round, operations, rate_for
from qwen_local.embedded import TINY_MODEL
from qwen_local.models.architecture import Architecture
from qwen_local.models.source import fetch, find_model

ARCHITECTURE = Architecture(
    model_type="qwen3",
    hidden=4,
    intermediate=6,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=3,
    vocabulary=10,
    tied=True,
    rope_theta=1e6,
    positions=64,
)
"""q 6 x 4, k and v 3 x 4, o 4 x 6, gate and up 6 x 4, down 4 x 6."""


def test_the_operations_of_a_step_are_those_counted_by_hand() -> None:
    """One row of 3 positions, 2 of them supervised, rank 1."""
    weights = 2 * (24 + 12 + 12 + 24 + 24 + 24 + 24)  # of two blocks
    first = 24 + 12 + 12  # queries, keys and values of the first: nothing goes back through them
    both_factors = 2 * (10 + 7 + 7 + 10 + 10 + 10 + 10)
    assert operations(ARCHITECTURE, [3], 2, rank=1) == Operations(
        blocks=3 * 2 * (weights + weights - first),
        lora=3 * 2 * (3 * both_factors - 3 * 4),
        head=2 * 2 * (2 * 10 * 4),
        attention=2 * 7 * 2 * 6 * (2 * 3),  # blocks, products, and 6 pairs of positions
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
    supervised = [int((rows.row(r)[1] >= 0).sum()) for r in range(len(rows))]
    prompts = rows.lengths_R - supervised
    if workload == "code":
        assert min(supervised) >= 9 and max(supervised) <= 301
        assert 55 < np.median(supervised) < 75
        assert prompts.min() >= 21 and prompts.max() <= 69
    elif workload == "movielens":
        assert set(supervised) == {2}
        assert prompts.min() >= 159 and prompts.max() <= 359
    else:
        assert set(rows.lengths_R) == {LONGEST}
        assert set(prompts) == {48}


def test_a_measurement_on_the_embedded_model_has_a_share_of_every_round() -> None:
    model = fetch(find_model(TINY_MODEL))
    found = measure(model, "code", 2, device="cpu", rounds=2)
    share = found["share"]
    assert 0 < share["least"] <= share["median"] <= share["most"]
    assert found["gradient_checkpointing"] is False
