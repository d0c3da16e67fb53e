"""The language-model head and its loss, at supervised positions only.

The head is frozen, so the gradient with respect to its input can be formed in the same pass that
forms the loss: chunk by chunk, one chunk's logits exist at a time and none are kept for the
backward pass. (The idea of Cut Cross-Entropy, arXiv:2411.09009, in plain PyTorch.)

Only `nll_in_place`, `_nll_and_gradient` and `counted` know what is in the columns of targets.

Shapes: N = supervised positions, C = positions of a chunk, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qwen_local.backends.cuda.product import product

Columns = Mapping[str, Tensor]
"""The columns of `rows.targets.Targets` as tensors, [N] or [C] each."""


def nll_in_place(logits_CV: Tensor, targets_C: Columns) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihood of hard targets; the logits become what their gradient is made of.

    For a confident row the probability of the target is 1 up to rounding and log(sum) loses the
    loss; the mass of all the *other* entries keeps it: nll = log1p(rest / exp(target)).

    Args:
        logits_CV: float32. Afterwards exp(logit - the largest of the row), and 0 at the target.
        targets_C: `ids`, int32. A negative id is padding, and its result undefined.

    Returns:
        (nll float32 [C], rest float32 [C, 1]: the sum of what is left in the row, total float32
        [C, 1]: the same with the target's). The gradient with respect to the logits is what is left
        / total, and -rest / total at the target.
    """
    at = targets_C["ids"].long().clamp_min(0).unsqueeze(1)
    largest_C1 = logits_CV.amax(1, keepdim=True)
    shifted_C1 = logits_CV.gather(1, at) - largest_C1
    others_CV = logits_CV.sub_(largest_C1).exp_().scatter_(1, at, 0.0)
    target_C1 = shifted_C1.exp()
    rest_C1 = others_CV.sum(1, keepdim=True)
    total_C1 = rest_C1 + target_C1
    nll_C1 = torch.where(
        target_C1 > rest_C1, torch.log1p(rest_C1 / target_C1), total_C1.log() - shifted_C1
    )
    return nll_C1.squeeze(1), rest_C1, total_C1


def counted(targets_C: Columns) -> Tensor:
    """Return 1 where a position counts in the loss, and 0 where it is padding: float32 [C]."""
    return (targets_C["ids"] >= 0).float()


def logits_in(room_CV: Tensor, hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    """The logits of some positions, float32, written over what a chunk before them left.

    Args:
        room_CV: float32, with at least as many rows.
        hidden_CD: in the dtype of the weight.
        weight_VD: the head.
    """
    return product(hidden_CD, weight_VD.T, out=room_CV[: len(hidden_CD)])


def room(positions: int, weight_VD: Tensor, chunk: int) -> Tensor:
    """Memory for the logits of a chunk, float32 [C, V]."""
    size = min(positions, chunk), len(weight_VD)
    return torch.empty(size, dtype=torch.float32, device=weight_VD.device)


def _nll_and_gradient(
    logits_CV: Tensor, weight_VD: Tensor, targets_C: Columns
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of hard targets, and its gradient behind the head.

    Args:
        logits_CV: float32; overwritten.
        weight_VD: the head.
        targets_C: see `nll_in_place`.

    Returns:
        (nll float32 [C], gradient with respect to the hidden states float32 [C, D]); both 0 for
        padding.
    """
    nll_C, rest_C1, total_C1 = nll_in_place(logits_CV, targets_C)
    if weight_VD.dtype == torch.float16:  # which does not hold every total
        logits_CV.div_(total_C1)
        rest_C1, total_C1 = rest_C1 / total_C1, torch.ones_like(total_C1)
    # The division and the target's own entry are put behind the product: [C, D] is small.
    others_CD = product(logits_CV.to(weight_VD.dtype), weight_VD)
    own_CD = rest_C1 * weight_VD[targets_C["ids"].long().clamp_min(0)]
    real_C = counted(targets_C)
    return nll_C * real_C, others_CD.sub_(own_CD).mul_(real_C[:, None] / total_C1)


def _part(targets_N: Columns, part: slice) -> Columns:
    return {name: column[part] for name, column in targets_N.items()}


class SupervisedLoss(torch.autograd.Function):
    """sum(nll) of hidden states under a frozen head, its gradient formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Columns, chunk: int
    ) -> Tensor:
        """The summed loss in nats, a float32 scalar."""
        gradient_ND = torch.empty_like(hidden_ND)
        losses_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        room_CV = room(len(hidden_ND), weight_VD, chunk)
        for start in range(0, len(hidden_ND), chunk):
            part = slice(start, start + chunk)
            logits_CV = logits_in(room_CV, hidden_ND[part], weight_VD)
            losses_N[part], gradient_ND[part] = _nll_and_gradient(
                logits_CV, weight_VD, _part(targets_N, part)
            )
        ctx.save_for_backward(gradient_ND)
        return losses_N.sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient with respect to the hidden states; the head is frozen."""
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * grad_outputs[0].to(gradient_ND.dtype), None, None, None


def score_rows(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Columns, chunk: int) -> Tensor:
    """Negative log-likelihood of each position, float32 [N]; no gradient."""
    losses_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
    room_CV = room(len(hidden_ND), weight_VD, chunk)
    for start in range(0, len(hidden_ND), chunk):
        part = slice(start, start + chunk)
        logits_CV = logits_in(room_CV, hidden_ND[part], weight_VD)
        losses_N[part] = nll_in_place(logits_CV, _part(targets_N, part))[0]
    return losses_N
