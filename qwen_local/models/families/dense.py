"""The block that the dense families share: causal attention and a gated MLP.

Names are those of transformers (`modeling_qwen2.py`, `modeling_qwen3.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from qwen_local.models.architecture import Linear, Shape
from qwen_local.models.families.family import Sizes

PATHS = {
    **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
}
"""Short name -> path in the block."""

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
"""Keys of config.json."""


def linears(sizes: Sizes) -> dict[str, Linear]:
    """Return the linear layers of a block, by short name."""
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    shapes = {
        "q_proj": (queries, sizes.hidden),
        "k_proj": (keys, sizes.hidden),
        "v_proj": (keys, sizes.hidden),
        "o_proj": (sizes.hidden, queries),
        "gate_proj": (sizes.intermediate, sizes.hidden),
        "up_proj": (sizes.intermediate, sizes.hidden),
        "down_proj": (sizes.hidden, sizes.intermediate),
    }
    return {name: Linear(path=path, shape=shapes[name]) for name, path in PATHS.items()}


def tensors(
    sizes: Sizes, linears: Mapping[str, Linear], *, biased: Collection[str] = ()
) -> dict[str, Shape]:
    """Return the shape of each tensor by its name in the block: norms, then linear layers.

    Args:
        sizes: of the block.
        linears: from `linears`.
        biased: short names of the layers that have a bias.
    """
    norms = ("input_layernorm", "post_attention_layernorm")
    shapes: dict[str, Shape] = {f"{norm}.weight": (sizes.hidden,) for norm in norms}
    for name, linear in linears.items():
        shapes[f"{linear.path}.weight"] = linear.shape
        if name in biased:
            shapes[f"{linear.path}.bias"] = linear.shape[:1]
    return shapes
