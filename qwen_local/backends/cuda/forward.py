"""The blocks of a Qwen2 or Qwen3 model in training: rows one behind the other, without padding.

The modules are those of transformers and PEFT; only the way through them is ours. The rows of a
micro-batch are one sequence of T positions, each row from position 0; linear layers and norms see
no border, and attention is computed for each row by itself. `fused.py` has the pieces.

Shapes: T = positions, D = hidden size, H and K = heads of queries and of keys, E = size of a head.
"""

from __future__ import annotations

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
    twice: bool = False,
    drops: bool = False,
) -> Tensor:
    """What leaves the last norm at the positions that are looked at: [N, D] in the model's dtype.

    Args:
        backbone: transformers' model without its head, with or without PEFT's layers.
        ids_T: integers, the rows one after the other.
        borders: of the rows.
        positions_N: int64, rising. What the last block computes behind its attention is of no use
            anywhere else, and is not computed there.
        twice: compute each block once more in the backward pass instead of keeping what it needs.
        drops: whether adapters drop inputs, so that the second time must drop the same.
    """
    x = F.embedding(ids_T, backbone.embed_tokens.weight)
    angles = _angles(backbone, borders.positions_T, x.dtype)
    *blocks, last = backbone.layers
    for block, wanted in [*((block, None) for block in blocks), (last, positions_N)]:
        if twice and torch.is_grad_enabled():
            given = block, x, angles, borders, wanted
            x = checkpoint(_block, *given, use_reentrant=False, preserve_rng_state=drops)
        else:
            x = _block(block, x, angles, borders, wanted)
    return _norm(backbone.norm, x)


def _angles(backbone: Any, positions_T: Tensor, dtype: torch.dtype) -> Angles:
    wide = torch.empty(0, dtype=dtype, device=positions_T.device)
    cos, sin = backbone.rotary_emb(wide, positions_T.unsqueeze(0))
    half = cos.shape[-1] // 2
    return cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()


def _block(
    block: Any, x_TD: Tensor, angles: Angles, borders: Borders, wanted_N: Tensor | None
) -> Tensor:
    """[T, D], or [N, D] where only some positions are wanted."""
    layer, mlp = block.self_attn, block.mlp
    x, heard = x_TD, _heard(layer, _norm(block.input_layernorm, x_TD), angles, borders)
    if wanted_N is not None:
        x, heard = x.index_select(0, wanted_N), heard.index_select(0, wanted_N)
    x = linear(layer.o_proj, heard) + x
    y = _norm(block.post_attention_layernorm, x)
    gated = GatedSilu.apply(linear(mlp.gate_proj, y), linear(mlp.up_proj, y))
    return linear(mlp.down_proj, gated) + x


def _heard(layer: Any, x_TD: Tensor, angles: Angles, borders: Borders) -> Tensor:
    """What all heads hear together, [T, H * E]."""
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
    """A linear layer with its adapter, if it has one.

    PEFT's own forward pass stands in where there is more than the two low-rank matrices (DoRA), or
    where the frozen layer does more than a product (LLM.int8() rounds what goes in).
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
    """Gives the weight of a frozen layer; None where it is more than a product with one."""
    if type(base) is nn.Linear:
        return lambda: base.weight
    if type(base).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit  # perhaps not there otherwise

        return lambda: dequantize_4bit(base.weight.data, base.weight.quant_state).to(dtype)
    return None
