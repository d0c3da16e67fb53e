"""The parts of a block whose backward pass is written by hand, to keep and copy less than autograd.

The weights are frozen, so no gradient with respect to them is formed, and an adapter needs little
of its layer's input and output. Everything else is recomputed or done in place.

Shapes: T = positions of a micro-batch, I and O = input and output size of a linear layer, r = rank,
H = heads, D = size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # as PyTorch's own documentation has it

from qwen_local.backends.cuda.product import add_gradient, scaled

Dense = Callable[[], Tensor]
"""Returns the weight [O, I] of a linear layer in the computing dtype; a quantized weight is
dequantized at every call."""


class FrozenLinear(torch.autograd.Function):
    """x W' + bias with a gradient for x; a dequantized weight is made again and not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dense: Dense, bias_O: Tensor | None) -> Tensor:
        """Return the layer's output [..., O] in the dtype of x."""
        ctx.dense = dense
        return F.linear(x, dense(), bias_O)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of x."""
        return grad_outputs[0] @ ctx.dense(), None, None


class AdaptedLinear(torch.autograd.Function):
    """x W' + bias + scale * (x A') B', with gradients for x, A and B.

    Those of A and B are added to `grad` by their own products: in float32, in which micro-batches
    add up, and without a pass for each sum.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        a_rI: Tensor,
        b_Or: Tensor,
        copies: tuple[Tensor, Tensor],
        dense: Dense,
        bias_O: Tensor | None,
        scale: float,
        dropped_TI: Tensor | None,
    ) -> Tensor:
        """Return the layer's output [T, O] in the dtype of x.

        Args:
            ctx: autograd's.
            x_TI: input of the frozen layer.
            a_rI: float32; for its `grad`. Its values are read from the copy.
            b_Or: likewise.
            copies: of A and B in the dtype of x.
            dense: the frozen weight.
            bias_O: the frozen bias, if any.
            scale: of the adapter.
            dropped_TI: input of the adapter after dropout; None for x itself.
        """
        a, b = copies
        into_TI = x_TI if dropped_TI is None else dropped_TI
        low_Tr = into_TI @ a.T
        y_TO = F.linear(x_TI, dense(), bias_O)
        # Added in place: autograd would form the adapter's [T, O] on its own and then a sum.
        y_TO.addmm_(low_Tr, b.T, alpha=scale)
        # Enough for A and B: dA needs the adapter's input, dB the low-rank vector, and dx only
        # weights. The output is not kept; neither is x where dropout made another input, nor a
        # dequantized weight, which `dense` makes again.
        ctx.save_for_backward(into_TI, low_Tr)
        ctx.parameters, ctx.copies, ctx.dense = (a_rI, b_Or), copies, dense
        ctx.scale, ctx.same = scale, dropped_TI is None
        return y_TO

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients of x and of the dropped x."""
        (dy_TO,) = grad_outputs
        into_TI, low_Tr = ctx.saved_tensors
        (a_rI, b_Or), (a, b) = ctx.parameters, ctx.copies
        # With s the scale and z = x A': dz = s dy B, dA = dz' x, dB = s dy' z, dx = dy W + dz A.
        dlow_Tr = scaled(dy_TO, b, ctx.scale)
        # Autograd gets None for them: the engine reads `grad`, and asks for no gradient by name.
        add_gradient(a_rI, dlow_Tr.T, into_TI)
        add_gradient(b_Or, dy_TO.T, low_Tr, scale=ctx.scale)
        dx = ddropped = None
        if ctx.needs_input_grad[0]:  # not in the first layers: the embedding is frozen
            dx = dy_TO @ ctx.dense()
            # One input for layer and adapter: both gradients in one array. With dropout they are
            # two inputs, and autograd applies the mask to the second before it adds them.
            if ctx.same:
                dx.addmm_(dlow_Tr, a)
        if ctx.needs_input_grad[7]:
            ddropped = dlow_Tr @ a
        return dx, None, None, None, None, None, None, ddropped


class GatedSilu(torch.autograd.Function):
    """silu(gate) * up; only the two inputs are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Return the product, in the dtype and shape of both."""
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of both."""
        (dy,) = grad_outputs
        gate, up = ctx.saved_tensors
        dup = F.silu(gate).mul_(dy)  # the activation is cheaper to recompute than to keep
        dgate = torch.ops.aten.silu_backward(dy * up, gate)
        return dgate, dup


class Norm(torch.autograd.Function):
    """RMSNorm under a frozen weight, computed in float32; only its input is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Return x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, in x's dtype."""
        y, scale = _normed(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of x."""
        (dy,) = grad_outputs
        x, weight, scale = ctx.saved_tensors
        # With s = 1 / sqrt(mean(x^2) + epsilon), u = x s and g = dy w: dx = s (g - u mean(g u)).
        # The mean is the part of g along x, which a norm cannot pass on.
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
    """Rotary embedding: rotates the halves of every head by its position's angles."""

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        """Return the rotated vectors; cos and sin belong to half a head, [T, 1, D / 2]."""
        ctx.save_for_backward(cos_T1D, sin_T1D)
        return _rotated(x_THD, cos_T1D, sin_T1D, 1.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient, rotated back: the inverse of a rotation is its transpose."""
        cos_T1D, sin_T1D = ctx.saved_tensors
        return _rotated(grad_outputs[0], cos_T1D, sin_T1D, -1.0), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, way: float) -> Tensor:
    y = torch.empty_like(x)
    (a, b), (c, d) = x.chunk(2, -1), y.chunk(2, -1)
    torch.mul(a, cos, out=c).addcmul_(b, sin, value=-way)
    torch.mul(b, cos, out=d).addcmul_(a, sin, value=way)
    return y
