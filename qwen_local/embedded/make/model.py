"""Configuration, initialization and saving of the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import Qwen3Config, Qwen3ForCausalLM

from qwen_local.embedded.make.tokenizer import ADDED, VOCABULARY

MAX_LENGTH = 2048
PARAMETERS = 2_164_928
END_OF_TEXT, END_OF_TURN, THINK = (
    VOCABULARY - len(ADDED) + ADDED.index(content)
    for content in ("<|endoftext|>", "<|im_end|>", "<think>")
)

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "max_position_embeddings": MAX_LENGTH,
    # Both forms: transformers 5 reads the second; mlx-lm and older programs read the first.
    "rope_theta": 10_000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "use_cache": True,
    "dtype": "bfloat16",
    "bos_token_id": None,
    "eos_token_id": END_OF_TURN,
    "pad_token_id": END_OF_TEXT,
}
"""Heads x head_dim (256) differs from the hidden size (192), as in Qwen3-0.6B, to expose bugs in
shapes. All widths are multiples of 64, the group size of the 4-bit formats."""

GENERATION = {"do_sample": False, "eos_token_id": END_OF_TURN, "pad_token_id": END_OF_TEXT}


def new_model(seed: int) -> Qwen3ForCausalLM:
    """Initialize the model in float32, with smaller weights for the residual projections."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**{**CONFIG, "dtype": "float32"}))
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.div_((2 * CONFIG["num_hidden_layers"]) ** 0.5)
    return model


def save_model(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Write the bfloat16 weights (without the tied head) and the two config files."""
    weights = {
        name: parameter.detach().to(torch.bfloat16).contiguous()
        for name, parameter in model.named_parameters()
    }
    assert sum(weight.numel() for weight in weights.values()) == PARAMETERS
    # Not save_file, which creates files that only the owner can read.
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "generation_config.json", GENERATION)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a value as indented JSON with a final line break."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
