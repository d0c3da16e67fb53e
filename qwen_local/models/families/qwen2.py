"""Qwen2, Qwen2.5 and Qwen2.5-Coder, dense: biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen_local.models.architecture import Block
from qwen_local.models.families import dense
from qwen_local.models.families.family import Family, Sizes


def _block(sizes: Sizes) -> Block:
    linears = dense.linears(sizes)
    tensors = dense.tensors(sizes, linears, biased=("q_proj", "k_proj", "v_proj"))
    return Block(kind="attention", linears=linears, tensors=tensors)


def _size_faults(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """transformers reads `head_dim`, mlx-lm does not: only the implied value suits both."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim")
    if hidden % heads:
        yield "hidden_size", f"expected a multiple of num_attention_heads ({heads}); found {hidden}"
    elif size not in (None, hidden // heads):
        problem = f"expected hidden_size / num_attention_heads ({hidden // heads}); found {size}"
        yield "head_dim", problem


QWEN2 = Family(
    model_type="qwen2",
    model_class="Qwen2ForCausalLM",
    gguf="qwen2",
    targets=tuple(dense.PATHS),
    sizes=dense.SIZES,
    size_faults=_size_faults,
    block=_block,
    ignored_tensors=(".self_attn.rotary_emb.inv_freq",),  # mlx-lm's qwen3 stops at these
    mlx_lm_reads_rope_parameters=False,
)
