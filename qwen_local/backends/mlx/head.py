"""The language-model head and its loss, at supervised positions only.

The head is frozen, so the gradient with respect to its input is formed in the same pass that forms
the loss: chunk by chunk over the positions, never the whole [N, V] of logits. The step then
differentiates the surrogate sum(stop_gradient(gradient) * hidden), whose gradient that is.

Only `nll` and `counted` know what is in the columns of targets.

Shapes: N = supervised positions, C = positions of a chunk, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping

import mlx.core as mx

BLOCK = 128
"""Sums that a row of the vocabulary is reduced to first. MLX's CPU sum is a running one in float32,
which loses the tail of a long row once one entry dominates; one in two stages does not."""

X86 = ("x86_64", "AMD64")

Head = Callable[[mx.array], mx.array]
"""[C, D] -> [C, V]; the way back is [C, V] -> [C, D], a product with the head's weight [V, D]."""


Columns = Mapping[str, mx.array]
"""The columns of `rows.targets.Targets` as MLX arrays, [N] or [C] each."""


def nll(logits_CV: mx.array, targets_C: Columns) -> tuple[mx.array, mx.array, mx.array]:
    """Negative log-likelihood of hard targets, and its gradient with respect to the logits.

    The formula is that of the PyTorch engine: for a confident row, log1p(rest / exp(target)).
    The gradient is left without its divisor, so that a product with the head may come before the
    division, which then goes over [C, D] and not [C, V].

    Args:
        logits_CV: float32.
        targets_C: `ids`, int32; what comes of padding (a negative id) has no meaning.

    Returns:
        (nll float32 [C], total x d nll / d logits float32 [C, V], total float32 [C, 1]); total is
        the sum of the exponentials, the greatest of which is 1.
    """
    at = mx.maximum(targets_C["ids"], 0)[:, None]
    max_C1 = _largest(logits_CV)
    target_C1 = mx.take_along_axis(logits_CV, at, 1) - max_C1
    others_CV = _put(_exp(logits_CV - max_C1), at, mx.array(0.0))
    rest_C1 = _sum(others_CV)
    exp_C1 = mx.exp(target_C1)
    total_C1 = rest_C1 + exp_C1
    nll_C1 = mx.where(exp_C1 > rest_C1, mx.log1p(rest_C1 / exp_C1), mx.log(total_C1) - target_C1)
    return nll_C1.squeeze(1), _put(others_CV, at, -rest_C1), total_C1


def counted(targets_C: Columns) -> mx.array:
    """Return True where a position counts in the loss, and False where it is padding: [C]."""
    return targets_C["ids"] >= 0


# On Metal a pass over [C, V] costs its memory traffic, and a compiled step joins passes that no
# array is put into: there a row is reduced at once, and its target chosen by comparison. On a CPU
# the same would take many times as long.


def on_gpu() -> bool:
    """Return True if arrays are computed on a GPU."""
    return bool(mx.default_device() == mx.gpu)


def _largest(values_CV: mx.array) -> mx.array:
    if on_gpu():
        return values_CV.max(1, keepdims=True)
    return _in_blocks(values_CV, -math.inf).max(1).max(1, keepdims=True)


def _sum(values_CV: mx.array) -> mx.array:
    if on_gpu():
        return values_CV.sum(1, keepdims=True)
    return _in_blocks(values_CV, 0.0).sum(1).sum(1, keepdims=True)


def _put(values_CV: mx.array, at_C1: mx.array, new: mx.array) -> mx.array:
    """Replace one entry of each row."""
    if on_gpu():
        return mx.where(mx.arange(values_CV.shape[1]) == at_C1, new, values_CV)
    return mx.put_along_axis(values_CV, at_C1, new, 1)


def _in_blocks(values_CV: mx.array, fill: float) -> mx.array:
    """Rows as [C, V / BLOCK, BLOCK], to be reduced over axis 1 and then over what is left.

    In this order MLX's CPU reduces whole blocks at a time, seven times as fast as it does a row.
    """
    rows, width = values_CV.shape
    values_CV = mx.pad(values_CV, [(0, 0), (0, -width % BLOCK)], constant_values=fill)
    return values_CV.reshape(rows, -1, BLOCK)


def _exp(values: mx.array) -> mx.array:
    """e to these powers.

    Built for x86, MLX calls the C library for every `fma` of its own exponential: 14 ns an entry,
    where the library's `powf` takes 6 and is no less exact.
    """
    if platform.machine() in X86 and not on_gpu():
        return mx.power(mx.array(math.e), values)
    return mx.exp(values)


def _after(chunk_CD: mx.array, before: list[mx.array]) -> mx.array:
    """This chunk, but not before that: left to itself MLX computes all chunks at once."""
    return mx.depends([chunk_CD], before)[0] if before else chunk_CD


def _part(targets_N: Columns, part: slice) -> Columns:
    return {name: column[part] for name, column in targets_N.items()}


def loss_and_gradient(
    hidden_ND: mx.array, head: Head, back: Head, targets_N: Columns, chunk: int
) -> tuple[mx.array, mx.array]:
    """Loss at each position and the gradient of their sum with respect to the hidden states.

    Args:
        hidden_ND: any float dtype.
        head: the frozen head.
        back: takes the gradient of the logits to that of the hidden states.
        targets_N: see `nll`; padding counts nothing.
        chunk: positions whose logits exist at one time.

    Returns:
        (nll float32 [N], gradient [N, D] in the dtype of the hidden states).
    """
    losses: list[mx.array] = []
    gradients: list[mx.array] = []
    for start in range(0, hidden_ND.shape[0], chunk):
        part = slice(start, start + chunk)
        targets_C = _part(targets_N, part)
        real_C = counted(targets_C).astype(mx.float32)
        hidden_CD = _after(hidden_ND[part], gradients[-1:] + losses[-1:])
        logits_CV = head(hidden_CD).astype(mx.float32)
        nll_C, gradient_CV, total_C1 = nll(logits_CV, targets_C)
        losses.append(nll_C * real_C)
        real_C1 = real_C[:, None] / total_C1
        if hidden_ND.dtype == mx.float32:
            gradients.append(back(gradient_CV) * real_C1)
        else:  # the cast is a pass over [C, V] anyway; and float16 does not hold every total
            gradients.append(back(gradient_CV * real_C1))
    return mx.concatenate(losses), mx.concatenate(gradients)


def losses(hidden_ND: mx.array, head: Head, targets_N: Columns, chunk: int) -> mx.array:
    """Loss at each position, float32 [N]; padding gives zero."""
    parts: list[mx.array] = []
    for start in range(0, hidden_ND.shape[0], chunk):
        part = slice(start, start + chunk)
        targets_C = _part(targets_N, part)
        logits_CV = head(_after(hidden_ND[part], parts[-1:])).astype(mx.float32)
        nll_C, _, _ = nll(logits_CV, targets_C)
        parts.append(mx.where(counted(targets_C), nll_C, 0.0))
    return mx.concatenate(parts)
