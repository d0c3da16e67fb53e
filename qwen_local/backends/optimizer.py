"""Arithmetic of an optimizer step that both engines share: constants, clipping, dropout keys."""

from __future__ import annotations

import numpy as np

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
"""AdamW's constants in both engines (reference run R4; the defaults of transformers)."""

CLIP_EPSILON = 1e-6
"""Added to the norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does."""


def clip_factor(norm: float, limit: float | None) -> float:
    """Return the factor that brings a gradient of this norm down to the limit.

    Args:
        norm: over all arrays of the gradient.
        limit: the largest norm allowed; None or 0 for any.

    >>> clip_factor(2.0, 1.0) < 0.5, clip_factor(0.5, 1.0), clip_factor(9.0, None)
    (True, 1.0, 1.0)
    """
    if not limit or norm <= limit:
        return 1.0
    return min(1.0, limit / (norm + CLIP_EPSILON))


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Return the dropout key of one micro-batch: 63 bits, from these three numbers alone.

    No generator state needs storing: a step that is repeated or resumed draws the same masks.

    >>> dropout_seed(0, 1, 0) == dropout_seed(0, 1, 0) != dropout_seed(0, 1, 1)
    True
    """
    entropy = np.random.SeedSequence([seed, step, micro_batch])
    return int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))
