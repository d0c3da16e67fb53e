"""The pieces of a block whose backward pass is written out: for what autograd would keep or copy.

The weights are frozen, so that no gradient with respect to them is formed; what an adapter needs of
its layer's input and output is little. Everything else is recomputed or done in place.

Shapes: T = positions of a micro-batch, I and O = input and output size of a linear layer, r = rank,
H = heads, D = size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # as PyTorch's own documentation has it

Dense = Callable[[], Tensor]
"""Gives the weight [O, I] of a linear layer in the computing dtype; made anew where it is held in
fewer bits."""


class AdaptedLinear(torch.autograd.Function):
    """x W' + bias + scale * (x A') B', with gradients for x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        a_rI: Tensor,
        b_Or: Tensor,
        dense: Dense,
        bias_O: Tensor | None,
        scale: float,
        dropped_TI: Tensor | None,
    ) -> Tensor:
        """The layer's output [T, O] in the dtype of x.

        Args:
            ctx: autograd's.
            x_TI: what goes into the frozen layer.
            a_rI: float32.
            b_Or: float32.
            dense: the frozen weight.
            bias_O: the frozen bias, if any.
            scale: of the adapter.
            dropped_TI: what goes into the adapter where dropout changed it; None for x itself.
        """
        a, b = a_rI.to(x_TI.dtype), b_Or.to(x_TI.dtype)
        into_TI = x_TI if dropped_TI is None else dropped_TI
        low_Tr = into_TI @ a.T
        y_TO = F.linear(x_TI, dense(), bias_O)
        y_TO.addmm_(low_Tr, b.T, alpha=scale)
        ctx.save_for_backward(into_TI, low_Tr, a_rI, b_Or)
        ctx.dense, ctx.scale, ctx.same = dense, scale, dropped_TI is None
        return y_TO

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A, B and of the dropped x."""
        (dy_TO,) = grad_outputs
        into_TI, low_Tr, a_rI, b_Or = ctx.saved_tensors
        a, b = a_rI.to(dy_TO.dtype), b_Or.to(dy_TO.dtype)
        dlow_Tr = (dy_TO @ b).mul_(ctx.scale)
        da = (dlow_Tr.T @ into_TI).to(a_rI.dtype)
        db = (dy_TO.T @ low_Tr).mul_(ctx.scale).to(b_Or.dtype)
        dx = ddropped = None
        if ctx.needs_input_grad[0]:
            dx = dy_TO @ ctx.dense()
            if ctx.same:
                dx.addmm_(dlow_Tr, a)
        if ctx.needs_input_grad[6]:
            ddropped = dlow_Tr @ a
        return dx, da, db, None, None, None, ddropped


class GatedSilu(torch.autograd.Function):
    """silu(gate) * up, of which only the two inputs are kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """The product, in the dtype and shape of both."""
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of both."""
        (dy,) = grad_outputs
        gate, up = ctx.saved_tensors
        dup = F.silu(gate).mul_(dy)
        dgate = torch.ops.aten.silu_backward(dy * up, gate)
        return dgate, dup


class Norm(torch.autograd.Function):
    """RMSNorm under a frozen weight; computed in float32, of which only the input is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, in the dtype of x."""
        y, scale = _normed(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x."""
        (dy,) = grad_outputs
        x, weight, scale = ctx.saved_tensors
        g = dy.float() * weight.float()
        unit = x.float() * scale
        along = torch.linalg.vecdot(g, unit).unsqueeze(-1).div_(x.shape[-1])
        return g.sub_(unit.mul_(along)).mul_(scale).to(x.dtype), None, None


def _normed(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    squares = torch.linalg.vecdot(wide, wide).unsqueeze(-1)
    scale = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return (wide * scale).to(x.dtype).mul_(weight), scale


class Rotary(torch.autograd.Function):
    """Rotation of the halves of every head by its position's angles."""

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        """The rotated vectors; cos and sin are those of half a head, [T, 1, D / 2]."""
        ctx.save_for_backward(cos_T1D, sin_T1D)
        return _rotated(x_THD, cos_T1D, sin_T1D, 1.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, turned back."""
        cos_T1D, sin_T1D = ctx.saved_tensors
        return _rotated(grad_outputs[0], cos_T1D, sin_T1D, -1.0), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, way: float) -> Tensor:
    y = torch.empty_like(x)
    (a, b), (c, d) = x.chunk(2, -1), y.chunk(2, -1)
    torch.mul(a, cos, out=c).addcmul_(b, sin, value=-way)
    torch.mul(b, cos, out=d).addcmul_(a, sin, value=way)
    return y
