"""Sizes that the MLX engine and its cost model share."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_local.backends.machine import Device

GROUP = 64
"""Weights of a row that share a scale and a bias where MLX quantizes."""

HEAD_CHUNK: Mapping[Device, int] = {"cpu": 64, "gpu": 1024}
"""Supervised positions whose logits exist at one time.

A GPU holds 0.6 GB of float32 logits at 151,936 entries. On a CPU MLX allocates ahead of computing:
with 128 the head alone was 4 to 9 % faster, and the process took 75 MB more of 500 (vocabularies of
151,936 and 32,000).
"""

CACHE_BYTES: Mapping[Device, int] = {"cpu": 8 << 20, "gpu": 2 << 30}
"""Freed buffers that MLX may keep; without a limit memory only grows (mlx-lm #828).

On a CPU it reuses a buffer only for arrays of the same size to two pages, so almost none serves a
later step: with 32 or 256 MiB a step was no faster (hidden 256 and 512, both vocabularies), with
none 5 % slower. On a GPU it is the least: see `cache_limit`.
"""


def cache_limit(recommended: int, weights: int) -> int:
    """Bytes of freed buffers that MLX may keep on a GPU: half of what the weights leave.

    What is given back to macOS is asked for again in the next micro-batch, some gigabytes of it.
    MLX itself empties its cache where new arrays and the cache exceed what the device recommends,
    so that a plan counts the least only.

    Args:
        recommended: bytes that Metal recommends to use.
        weights: bytes in use with the model loaded.
    """
    return max(CACHE_BYTES["gpu"], (recommended - weights) // 2)
