"""Sizes that the PyTorch engine and its cost model share."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_local.backends.machine import Device
from qwen_local.rows.planner import rounded_up

LARGEST_HEAD = 256
"""Largest size of an attention head that FlashAttention-2 computes."""

HEAD_CHUNK: Mapping[Device, int] = {"cpu": 128, "gpu": 1024}
"""Supervised positions whose logits exist at one time; on a GPU 0.6 GB of float32 logits at 151,936
entries."""

SMALLEST = 64
"""Positions are padded at least to this, and supervised positions likewise."""
SIZES_PER_OCTAVE = 4
"""Sizes between a power of two and the next: at most a fourth is padding."""


def flash_head(size: int) -> bool:
    """Return True if FlashAttention-2 computes heads of this size."""
    return size <= LARGEST_HEAD and size % 8 == 0


def recorded_size(count: int) -> int:
    """Round up to one of the sizes that passes are recorded for.

    >>> [recorded_size(n) for n in (1, 64, 65, 100, 2134)]
    [64, 64, 80, 112, 2560]
    """
    return rounded_up(count, smallest=SMALLEST, an_octave=SIZES_PER_OCTAVE)
