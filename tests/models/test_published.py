"""Published figures, against totals counted by others."""

from __future__ import annotations

import pytest

from qwen_local.models.families import TARGETS
from qwen_local.models.published import PUBLISHED

# "total" of the safetensors metadata that the hub states on each model's page. Qwen3-0.6B and
# 1.7B are stored with a second copy of their tied head (751,632,384 and 2,031,739,904 there);
# keras-hub (keras_hub/src/models/qwen3/qwen3_presets.py) gives the figures without it.
TOTALS = {
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
}


def test_every_model_has_the_total_that_its_publisher_states() -> None:
    for name, shape in PUBLISHED.items():
        family, size = name.removeprefix("Qwen/").replace("-Coder", "").split("-")[:2]
        assert shape.parameters() == TOTALS[f"{family}-{size}"], name


def test_every_size_and_kind_is_there() -> None:
    sizes = {"0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"}
    base = {f"Qwen2.5-{size}" for size in sizes}
    base |= {f"Qwen2.5-Coder-{size}" for size in sizes - {"72B"}}
    qwen3 = {"0.6B", "1.7B", "4B", "8B", "14B"}
    assert {name.removeprefix("Qwen/") for name in PUBLISHED} == (
        base
        | {f"{name}-Instruct" for name in base}
        | {f"Qwen3-{size}" for size in qwen3}
        | {f"Qwen3-{size}-Base" for size in qwen3}
        | {"Qwen3-32B", "Qwen3-4B-Instruct-2507", "Qwen3-4B-Thinking-2507"}
    )


@pytest.mark.parametrize(
    ("model", "positions", "rope_theta"),
    [  # max_position_embeddings and rope_theta of each config.json
        ("Qwen2.5-0.5B", 32_768, 1e6),
        ("Qwen2.5-1.5B", 131_072, 1e6),
        ("Qwen2.5-1.5B-Instruct", 32_768, 1e6),
        ("Qwen2.5-3B", 32_768, 1e6),
        ("Qwen2.5-72B", 131_072, 1e6),
        ("Qwen2.5-Coder-7B", 32_768, 1e6),
        ("Qwen3-0.6B", 40_960, 1e6),
        ("Qwen3-1.7B-Base", 32_768, 1e6),
        ("Qwen3-4B-Instruct-2507", 262_144, 5e6),
        ("Qwen3-4B-Thinking-2507", 262_144, 5e6),
    ],
)
def test_positions_are_those_of_the_config(model: str, positions: int, rope_theta: float) -> None:
    shape = PUBLISHED[f"Qwen/{model}"]
    assert (shape.positions, shape.rope_theta) == (positions, rope_theta)


@pytest.mark.parametrize(("rank", "trainable"), [(8, 2_179_072), (16, 4_358_144)])
def test_attention_adapters_of_the_coder_have_the_size_of_r1(rank: int, trainable: int) -> None:
    """Reference run R1, runs 1 and 2: q, k, v, o of Qwen2.5-Coder-1.5B-Instruct."""
    shape = PUBLISHED["Qwen/Qwen2.5-Coder-1.5B-Instruct"]
    assert (
        shape.lora_parameters(rank, ("q_proj", "k_proj", "v_proj", "o_proj"), shape.layers)
        == trainable
    )
    assert shape.parameters() + trainable == {8: 1_545_893_376, 16: 1_548_072_448}[rank]


def test_an_adapter_on_every_linear_layer_has_the_size_of_r4() -> None:
    """Reference run R4: 10,092,544 of 606,142,464 with rank 16 on Qwen3-0.6B."""
    shape = PUBLISHED["Qwen/Qwen3-0.6B"]
    assert shape.lora_parameters(16, TARGETS, shape.layers) == 10_092_544
    assert shape.parameters() + 10_092_544 == 606_142_464
