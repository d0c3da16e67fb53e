"""The shape of a Qwen2 or Qwen3 dense model, and what can be counted from it alone.

Shapes are (out, in), as a linear layer stores its weight. Sources: the `configuration_qwen2.py` and
`modeling_qwen3.py` of transformers for names and biases; reference runs R1 and R4 for the totals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

MODEL_TYPES = ("qwen2", "qwen3")
"""The model families (config.json `model_type`) that both engines train."""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
LINEARS = (*ATTENTION, *MLP)
"""Every linear layer of a block, by its short name: what `lora.targets: all-linear` means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """How a model's files hold its matrices, where not as floats."""

    scheme: Literal["affine", "nf4", "int8"]
    """MLX's affine codes (weight = scale * code + bias), or what bitsandbytes writes."""
    bits: int
    """Of a code."""
    group: int
    """Weights that share a scale; 0 for a whole row."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Stored | None:
        """What a config.json that was checked says: None where the files hold floats."""
        if affine := config.get("quantization"):
            return cls(scheme="affine", bits=affine["bits"], group=affine["group_size"])
        if not (theirs := config.get("quantization_config")):
            return None
        if theirs.get("load_in_4bit"):
            return cls(scheme="nf4", bits=4, group=64)
        return cls(scheme="int8", bits=8, group=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """The figures of one dense model."""

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """Whether the head is the embedding matrix."""
    rope_theta: float
    positions: int
    """The longest sequence that the model was made for, in tokens."""
    stored: Stored | None = None
    """How the files are quantized; None where they hold floats."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """The figures of a config.json, as transformers 4 (`rope_theta`) or 5 wrote it."""
        rope = config.get("rope_parameters") or {}
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return cls(
            model_type=str(config["model_type"]),
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            positions=int(config.get("max_position_embeddings", 32_768)),
            stored=Stored.from_config(config),
        )

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear layer of a block, by its short name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
            "gate_proj": (self.intermediate, self.hidden),
            "up_proj": (self.intermediate, self.hidden),
            "down_proj": (self.hidden, self.intermediate),
        }

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the model, as its safetensors hold them."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            block = f"model.layers.{layer}"
            shapes[f"{block}.input_layernorm.weight"] = (self.hidden,)
            shapes[f"{block}.post_attention_layernorm.weight"] = (self.hidden,)
            for target, shape in self.linear_shapes().items():
                shapes[f"{block}.{block_path(target)}.weight"] = shape
                if self.model_type == "qwen2" and target in ("q_proj", "k_proj", "v_proj"):
                    shapes[f"{block}.self_attn.{target}.bias"] = shape[:1]
            if self.model_type == "qwen3":
                shapes[f"{block}.self_attn.q_norm.weight"] = (self.head_dim,)
                shapes[f"{block}.self_attn.k_norm.weight"] = (self.head_dim,)
        return shapes

    def parameters(self) -> int:
        """Parameters of the whole model, a tied head counted once."""
        return sum(math.prod(shape) for shape in self.weight_shapes().values())

    def lora_parameters(self, rank: int, targets: tuple[str, ...], layers: int) -> int:
        """Trainable parameters of a LoRA adapter: rank x (in + out) for every target.

        Args:
            rank: r of the update B A.
            targets: short names out of `LINEARS`.
            layers: how many blocks carry the adapter.
        """
        shapes = self.linear_shapes()
        return layers * sum(rank * sum(shapes[name]) for name in targets)


def block_path(target: str) -> str:
    """Where a linear layer sits in its block: `q_proj` -> `self_attn.q_proj`."""
    return f"self_attn.{target}" if target in ATTENTION else f"mlp.{target}"
