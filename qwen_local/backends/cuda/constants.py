"""Sizes that the PyTorch engine and its cost model share."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_local.backends.machine import Device

LARGEST_HEAD = 256
"""Largest size of an attention head that FlashAttention-2 computes."""

HEAD_CHUNK: Mapping[Device, int] = {"cpu": 128, "gpu": 1024}
"""Supervised positions whose logits exist at one time; on a GPU 0.6 GB of float32 logits at 151,936
entries."""

SMALLEST = 64
"""Positions are padded at least to this, and supervised positions likewise."""
SIZES_PER_OCTAVE = 4
"""Sizes between a power of two and the next: at most a fourth is padding."""


def rounded_up(count: int) -> int:
    """Round up to one of few sizes.

    >>> [rounded_up(n) for n in (1, 64, 65, 100, 2134)]
    [64, 64, 80, 112, 2560]
    """
    if count <= SMALLEST:
        return SMALLEST
    step = (1 << ((count - 1).bit_length() - 1)) // SIZES_PER_OCTAVE
    return -(-count // step) * step
