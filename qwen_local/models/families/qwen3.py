"""Qwen3, dense: queries and keys are normalized per head, and no layer has a bias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen_local.models.architecture import Block
from qwen_local.models.families import dense
from qwen_local.models.families.family import Family, Sizes


def _block(sizes: Sizes) -> Block:
    linears = dense.linears(sizes)
    norms = {f"self_attn.{norm}.weight": (sizes.head_dim,) for norm in ("q_norm", "k_norm")}
    tensors = dense.tensors(sizes, linears) | norms
    return Block(kind="qk_norm_attention", linears=linears, tensors=tensors)


def _size_faults(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if config["head_dim"] % 2:  # rotary embeddings turn pairs
        yield "head_dim", f"expected an even number; found {config['head_dim']}"


QWEN3 = Family(
    model_type="qwen3",
    model_class="Qwen3ForCausalLM",
    gguf="qwen3",
    targets=tuple(dense.PATHS),
    sizes=(*dense.SIZES, "head_dim"),
    size_faults=_size_faults,
    block=_block,
    mlx_lm_reads_rope_parameters=True,
)
