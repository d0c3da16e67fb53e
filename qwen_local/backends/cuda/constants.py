"""Sizes that the PyTorch engine and its cost model share."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_local.backends.machine import Device

LARGEST_HEAD = 256
"""Largest size of an attention head that FlashAttention-2 computes."""

HEAD_CHUNK: Mapping[Device, int] = {"cpu": 128, "gpu": 1024}
"""Supervised positions whose logits exist at one time; on a GPU 0.6 GB of float32 logits at 151,936
entries."""
