"""The forward pass through Qwen2's and Qwen3's blocks in training: packed rows, no padding.

The modules come from transformers and PEFT; only the pass through them is ours. The rows of a
micro-batch form one sequence of T positions, each row starting at position 0. Linear layers and
norms need no borders; attention is computed for each row by itself. `fused.py` has the parts.

Shapes: T = positions, D = hidden size, H and K = heads of queries and of keys, E = size of a head.
"""

from __future__ import annotations

from qwen_local.backends.cuda import before_import  # noqa: F401  # first: it imports bitsandbytes

# isort: split
from typing import Any

import peft.tuners.lora
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as PyTorch's own documentation has it
from torch.utils.checkpoint import checkpoint

from qwen_local.backends.cuda.attention import Borders, attention
from qwen_local.backends.cuda.fused import AdaptedLinear, Dense, GatedSilu, Norm, Rotary

Angles = tuple[Tensor, Tensor]
"""Cosine and sine of every position, [T, 1, E / 2]."""


def hidden_states(
    backbone: Any,
    ids_T: Tensor,
    borders: Borders,
    positions_N: Tensor,
    *,
    recompute: bool = False,
    dropout: bool = False,
) -> Tensor:
    """Compute the output of the last norm at the supervised positions: [N, D], model's dtype.

    Args:
        backbone: transformers' model without its head, with or without PEFT's layers.
        ids_T: integers, the rows one after the other.
        borders: of the rows.
        positions_N: int64, rising. After its attention, the last block is computed at these
            positions only: nothing else of its output is used.
        recompute: recompute each block in the backward pass instead of keeping its activations.
        dropout: True if adapters use dropout, so that a recomputed block must draw the same masks.
    """
    x = F.embedding(ids_T, backbone.embed_tokens.weight)
    angles = _angles(backbone, borders.positions_T, x.dtype)
    *blocks, last = backbone.layers
    for block, wanted in [*((block, None) for block in blocks), (last, positions_N)]:
        if recompute and torch.is_grad_enabled():
            args = block, x, angles, borders, wanted
            x = checkpoint(_block, *args, use_reentrant=False, preserve_rng_state=dropout)
        else:
            x = _block(block, x, angles, borders, wanted)
    return _norm(backbone.norm, x)


def _angles(backbone: Any, positions_T: Tensor, dtype: torch.dtype) -> Angles:
    # transformers' module takes only the dtype and device of its first argument; it returns every
    # angle once for each half of a head, of which `Rotary` needs one.
    like = torch.empty(0, dtype=dtype, device=positions_T.device)
    cos, sin = backbone.rotary_emb(like, positions_T.unsqueeze(0))
    half = cos.shape[-1] // 2
    return cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()


def _block(
    block: Any, x_TD: Tensor, angles: Angles, borders: Borders, wanted_N: Tensor | None
) -> Tensor:
    """Compute a block's output [T, D]; [N, D] where only some positions are wanted."""
    layer, mlp = block.self_attn, block.mlp
    x, attn = x_TD, _attention(layer, _norm(block.input_layernorm, x_TD), angles, borders)
    if wanted_N is not None:
        x, attn = x.index_select(0, wanted_N), attn.index_select(0, wanted_N)
    x = linear(layer.o_proj, attn) + x
    y = _norm(block.post_attention_layernorm, x)
    gated = GatedSilu.apply(linear(mlp.gate_proj, y), linear(mlp.up_proj, y))
    return linear(mlp.down_proj, gated) + x


def _attention(layer: Any, x_TD: Tensor, angles: Angles, borders: Borders) -> Tensor:
    """Compute the attention output of all heads, [T, H * E]."""
    queries, keys, values = (
        linear(module, x_TD).view(len(x_TD), -1, layer.head_dim)
        for module in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    if hasattr(layer, "q_norm"):  # Qwen3
        queries, keys = _norm(layer.q_norm, queries), _norm(layer.k_norm, keys)
    queries, keys = Rotary.apply(queries, *angles), Rotary.apply(keys, *angles)
    return attention(queries, keys, values, borders, scale=layer.scaling).flatten(1)


def _norm(norm: Any, x: Tensor) -> Tensor:
    if x.is_cuda:  # one kernel each way
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    return Norm.apply(x, norm.weight, norm.variance_epsilon)


def linear(module: nn.Module, x_TI: Tensor) -> Tensor:
    """Compute a linear layer with its adapter, if it has one.

    PEFT's own forward pass is used for adapters that are more than two low-rank matrices (DoRA),
    and for frozen layers that are more than a product (LLM.int8() rounds its inputs).
    """
    if not isinstance(module, peft.tuners.lora.LoraLayer):
        return module(x_TI)
    base = module.get_base_layer()
    dense = _dense(base, x_TI.dtype)
    if dense is None or module.lora_variant:
        # Adapters are float32, and PEFT computes in what it is given.
        with torch.autocast(x_TI.device.type, x_TI.dtype, enabled=x_TI.dtype != torch.float32):
            return module(x_TI)
    dropout = module.lora_dropout["default"]
    dropped = dropout(x_TI) if module.training and isinstance(dropout, nn.Dropout) else None
    return AdaptedLinear.apply(
        x_TI,
        module.lora_A["default"].weight,
        module.lora_B["default"].weight,
        dense,
        base.bias,
        module.scaling["default"],
        dropped,
    )


def _dense(base: Any, dtype: torch.dtype) -> Dense | None:
    """Return a function that gives a frozen layer's weight; None if it is more than a product."""
    if type(base) is nn.Linear:
        return lambda: base.weight
    if type(base).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit  # optional package

        return lambda: dequantize_4bit(base.weight.data, base.weight.quant_state).to(dtype)
    return None
