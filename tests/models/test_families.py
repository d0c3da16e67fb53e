"""Families and their blocks; names and shapes of real models are checked in test_tensor_check."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from qwen_local.models.families import FAMILIES, TARGETS, architecture_of
from qwen_local.models.families.family import Sizes

SIZES: dict[str, Any] = {
    "sizes": Sizes(hidden=8, intermediate=20, heads=2, kv_heads=1, head_dim=6),
    "layers": 2,
    "vocabulary": 10,
    "tied": False,
    "rope_theta": 1e4,
    "positions": 64,
}
BLOCK = {
    "input_layernorm.weight": (8,),
    "post_attention_layernorm.weight": (8,),
    "self_attn.q_proj.weight": (12, 8),
    "self_attn.k_proj.weight": (6, 8),
    "self_attn.v_proj.weight": (6, 8),
    "self_attn.o_proj.weight": (8, 12),
    "mlp.gate_proj.weight": (20, 8),
    "mlp.up_proj.weight": (20, 8),
    "mlp.down_proj.weight": (8, 20),
}
OWN = {
    "qwen2": {
        "self_attn.q_proj.bias": (12,),
        "self_attn.k_proj.bias": (6,),
        "self_attn.v_proj.bias": (6,),
    },
    "qwen3": {"self_attn.q_norm.weight": (6,), "self_attn.k_norm.weight": (6,)},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_has_the_tensors_of_its_family(family: str) -> None:
    architecture = FAMILIES[family].architecture(**SIZES)
    assert [dict(block.tensors) for block in architecture.blocks] == [BLOCK | OWN[family]] * 2
    assert architecture.weight_shapes() == {
        "model.embed_tokens.weight": (10, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (10, 8),
        **{f"model.layers.0.{name}": shape for name, shape in (BLOCK | OWN[family]).items()},
        **{f"model.layers.1.{name}": shape for name, shape in (BLOCK | OWN[family]).items()},
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bias_follows_its_weight_in_the_order_of_writing(family: str) -> None:
    names = list(FAMILIES[family].architecture(**SIZES).blocks[0].tensors)
    for name in names:
        if name.endswith(".bias"):
            assert names[names.index(name) - 1] == name.replace(".bias", ".weight")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_targets_of_a_family_are_the_linear_layers_of_its_blocks(family: str) -> None:
    for block in FAMILIES[family].architecture(**SIZES).blocks:
        assert tuple(block.linears) == FAMILIES[family].targets
        for linear in block.linears.values():
            assert block.tensors[f"{linear.path}.weight"] == linear.shape


def test_jobs_may_target_every_layer_of_any_family_in_block_order() -> None:
    assert TARGETS == (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


def test_rope_theta_is_read_from_both_homes() -> None:
    config = {
        "model_type": "qwen3",
        "hidden_size": 8,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 6,
        "vocab_size": 10,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    expected = FAMILIES["qwen3"].architecture(**SIZES)
    assert architecture_of(config | {"rope_theta": 1e4}) == expected
    assert architecture_of(config | {"rope_parameters": {"rope_theta": 1e4}}) == expected


def test_importing_the_families_loads_no_framework() -> None:
    heavy = ["torch", "mlx", "transformers", "numpy", "gguf", "pydantic"]
    code = (
        f"import sys, qwen_local.models.families; print([m for m in {heavy} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
