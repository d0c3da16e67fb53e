"""The language-model head and its loss, at supervised positions only.

The head is frozen, so the gradient with respect to its input can be formed in the same pass that
forms the loss: chunk by chunk, one chunk's logits exist at a time and none are kept for the
backward pass. (The idea of Cut Cross-Entropy, arXiv:2411.09009, in plain PyTorch.)

Shapes: N = supervised positions, C = positions of a chunk, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def nll(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the targets, and its gradient with respect to the logits.

    For a confident row the probability of the target is 1 up to rounding and log(sum) loses the
    loss; the mass of all the *other* entries keeps it: nll = log1p(rest / exp(target)).

    Args:
        logits_CV: float32.
        targets_C: int64.

    Returns:
        (nll float32 [C], d nll / d logits float32 [C, V]).
    """
    at = targets_C.unsqueeze(1)
    exp_CV = (logits_CV - logits_CV.amax(1, keepdim=True)).exp_()
    target_C1 = exp_CV.gather(1, at)
    rest_C1 = exp_CV.scatter_(1, at, 0.0).sum(1, keepdim=True)
    total_C1 = rest_C1 + target_C1
    shifted_C1 = logits_CV.gather(1, at) - logits_CV.amax(1, keepdim=True)
    nll_C1 = torch.where(
        target_C1 > rest_C1, torch.log1p(rest_C1 / target_C1), total_C1.log() - shifted_C1
    )
    gradient_CV = (exp_CV / total_C1).scatter_(1, at, -rest_C1 / total_C1)
    return nll_C1.squeeze(1), gradient_CV


class SupervisedLoss(torch.autograd.Function):
    """sum(nll) of hidden states under a frozen head, its gradient formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int
    ) -> Tensor:
        """The summed loss in nats, a float32 scalar."""
        gradient_ND = torch.empty_like(hidden_ND)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            logits_CV = (hidden_ND[part] @ weight_VD.T).float()
            nll_C, gradient_CV = nll(logits_CV, targets_N[part])
            total += nll_C.sum()
            gradient_ND[part] = gradient_CV.to(weight_VD.dtype) @ weight_VD
        ctx.save_for_backward(gradient_ND)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient with respect to the hidden states; the head is frozen."""
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * grad_outputs[0].to(gradient_ND.dtype), None, None, None


def score_rows(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
    """Negative log-likelihood of each position, float32 [N]; no gradient."""
    parts = [
        nll((hidden_ND[s : s + chunk] @ weight_VD.T).float(), targets_N[s : s + chunk])[0]
        for s in range(0, len(targets_N), chunk)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, device=hidden_ND.device)
