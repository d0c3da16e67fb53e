"""Matrix products whose result stays float32, as the tensor cores sum it."""

from __future__ import annotations

import torch
from torch import Tensor


def product(
    x_MK: Tensor,
    y_KN: Tensor,
    *,
    scale: float = 1.0,
    out: Tensor | None = None,
    add: bool = False,
) -> Tensor:
    """Compute scale * x y, float32 [M, N].

    From 16-bit factors a GPU gives the sum as it is; a CPU rounds it to their dtype first, as
    PyTorch has no such product there.

    Args:
        x_MK: any float dtype.
        y_KN: the same dtype.
        scale: of the result.
        out: float32 [M, N], overwritten and returned.
        add: add the result to `out` instead.
    """
    beta = 1 if add else 0
    if out is None:
        out = x_MK.new_empty(len(x_MK), y_KN.shape[1], dtype=torch.float32)
    if x_MK.dtype == torch.float32:
        return torch.addmm(out, x_MK, y_KN, beta=beta, alpha=scale, out=out)
    if x_MK.is_cuda:
        float32 = torch.float32
        return torch.addmm(out, x_MK, y_KN, out_dtype=float32, beta=beta, alpha=scale, out=out)
    rounded = scaled(x_MK, y_KN, scale)
    return out.add_(rounded) if add else out.copy_(rounded)


def add_gradient(parameter_MN: Tensor, x_MK: Tensor, y_KN: Tensor, *, scale: float = 1.0) -> None:
    """Add scale * x y to the gradient of a float32 parameter, [M, N]."""
    if parameter_MN.grad is None:
        parameter_MN.grad = product(x_MK, y_KN, scale=scale)
    else:
        product(x_MK, y_KN, scale=scale, out=parameter_MN.grad, add=True)


def scaled(x_MK: Tensor, y_KN: Tensor, scale: float) -> Tensor:
    """Compute scale * x y in the dtype of both, [M, N], without a pass for the scale."""
    return x_MK.new_empty(len(x_MK), y_KN.shape[1]).addmm_(x_MK, y_KN, beta=0, alpha=scale)
