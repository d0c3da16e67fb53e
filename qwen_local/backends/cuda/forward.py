"""The forward pass through Qwen2's and Qwen3's blocks in training: packed rows, no padding.

The modules come from transformers and PEFT; only the pass through them is ours. The rows of a
micro-batch form one sequence of T positions, each row starting at position 0. Linear layers and
norms need no borders; attention is computed for each row by itself. `fused.py` has the parts.

Shapes: T = positions, D = hidden size, H and K = heads of queries and of keys, E = size of a head.
"""

from __future__ import annotations

from qwen_local.backends.cuda import before_import  # noqa: F401  # first: it imports bitsandbytes

# isort: split
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import peft.tuners.lora
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as PyTorch's own documentation has it
from torch.utils.checkpoint import checkpoint

from qwen_local.backends.cuda.attention import Borders, attention
from qwen_local.backends.cuda.fused import AdaptedLinear, GatedSilu, Norm, Rotary
from qwen_local.backends.cuda.quantized import dense_weight

Angles = tuple[Tensor, Tensor]
"""Cosine and sine of every position, [T, 1, E / 2]."""
Copies = Mapping[Tensor, Tensor]
"""Parameters of adapters, float32, and each one's copy in the computing dtype."""
NO_COPIES: Copies = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """Inputs that all blocks of a pass share."""

    angles: Angles
    borders: Borders
    copies: Copies


def hidden_states(
    backbone: Any,
    ids_T: Tensor,
    borders: Borders,
    positions_N: Tensor,
    *,
    copies: Copies = NO_COPIES,
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
        copies: of adapters, made once for many passes; what is missing is cast in each layer.
        recompute: recompute each block in the backward pass instead of keeping its activations.
        dropout: True if adapters use dropout, so that a recomputed block must draw the same masks.
    """
    x = F.embedding(ids_T, backbone.embed_tokens.weight)
    given = _Pass(_angles(backbone, borders.positions_T, x.dtype), borders, copies)
    *blocks, last = backbone.layers
    for block, wanted in [*((block, None) for block in blocks), (last, positions_N)]:
        if recompute and torch.is_grad_enabled():
            args = block, x, given, wanted
            x = checkpoint(_block, *args, use_reentrant=False, preserve_rng_state=dropout)
        else:
            x = _block(block, x, given, wanted)
    return _norm(backbone.norm, x)


def _angles(backbone: Any, positions_T: Tensor, dtype: torch.dtype) -> Angles:
    # transformers' own module would do it by a batched product before release 5.23, which PyTorch
    # hands to Triton on a GPU, and Triton needs a C compiler. Its frequencies are float32.
    rotary = backbone.rotary_emb
    angles_T1H = (positions_T[:, None] * rotary.inv_freq)[:, None]
    scale = rotary.attention_scaling
    return (angles_T1H.cos() * scale).to(dtype), (angles_T1H.sin() * scale).to(dtype)


def _block(block: Any, x_TD: Tensor, given: _Pass, wanted_N: Tensor | None) -> Tensor:
    """Compute a block's output [T, D]; [N, D] where only some positions are wanted."""
    layer, mlp, copies = block.self_attn, block.mlp, given.copies
    x, attn = x_TD, _attention(layer, _norm(block.input_layernorm, x_TD), given)
    if wanted_N is not None:
        x, attn = x.index_select(0, wanted_N), attn.index_select(0, wanted_N)
    x = linear(layer.o_proj, attn, copies) + x
    y = _norm(block.post_attention_layernorm, x)
    gated = GatedSilu.apply(linear(mlp.gate_proj, y, copies), linear(mlp.up_proj, y, copies))
    return linear(mlp.down_proj, gated, copies) + x


def _attention(layer: Any, x_TD: Tensor, given: _Pass) -> Tensor:
    """Compute the attention output of all heads, [T, H * E]."""
    queries, keys, values = (
        linear(module, x_TD, given.copies).view(len(x_TD), -1, layer.head_dim)
        for module in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    if hasattr(layer, "q_norm"):  # Qwen3
        queries, keys = _norm(layer.q_norm, queries), _norm(layer.k_norm, keys)
    queries, keys = Rotary.apply(queries, *given.angles), Rotary.apply(keys, *given.angles)
    return attention(queries, keys, values, given.borders, scale=layer.scaling).flatten(1)


def _norm(norm: Any, x: Tensor) -> Tensor:
    if x.is_cuda:  # one kernel each way
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    return Norm.apply(x, norm.weight, norm.variance_epsilon)


def linear(module: nn.Module, x_TI: Tensor, copies: Copies = NO_COPIES) -> Tensor:
    """Compute a linear layer with its adapter, if it has one.

    PEFT's own forward pass is used for adapters that are more than two low-rank matrices (DoRA).
    """
    if not isinstance(module, peft.tuners.lora.LoraLayer):
        return module(x_TI)
    if module.lora_variant:
        # Adapters are float32, and PEFT computes in what it is given.
        with torch.autocast(x_TI.device.type, x_TI.dtype, enabled=x_TI.dtype != torch.float32):
            return module(x_TI)
    base, dropout = module.get_base_layer(), module.lora_dropout["default"]
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    low = [w.to(x_TI.dtype) if (copy := copies.get(w)) is None else copy for w in (a, b)]
    dropped = dropout(x_TI) if module.training and isinstance(dropout, nn.Dropout) else None
    scale = module.scaling["default"]
    weight = partial(dense_weight, base, x_TI.dtype)
    return AdaptedLinear.apply(x_TI, a, b, tuple(low), weight, base.bias, scale, dropped)
