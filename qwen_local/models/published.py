"""Architectures of the published models, so that a plan needs no network.

Sources: the config.json of each model on the hub (`https://huggingface.co/<name>/blob/main/
config.json`); LitGPT's `litgpt/config.py` restates most of them. Tests compare the parameter counts
with those of the published safetensors files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qwen_local.models.architecture import Architecture
from qwen_local.models.families.family import Sizes
from qwen_local.models.families.qwen2 import QWEN2
from qwen_local.models.families.qwen3 import QWEN3

K = 1024


def _qwen2(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    vocabulary: int = 152_064,
    tied: bool = False,
) -> Architecture:
    sizes = Sizes(
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
    )
    return QWEN2.architecture(
        sizes,
        layers=layers,
        vocabulary=vocabulary,
        tied=tied,
        rope_theta=1e6,
        positions=32 * K,
    )


def _qwen3(
    hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool = False
) -> Architecture:
    sizes = Sizes(hidden=hidden, intermediate=intermediate, heads=heads, kv_heads=8, head_dim=128)
    return QWEN3.architecture(
        sizes,
        layers=layers,
        vocabulary=151_936,
        tied=tied,
        rope_theta=1e6,
        positions=40 * K,
    )


# Qwen2.5 and Qwen2.5-Coder share their shapes; the small ones have a smaller, tied embedding.
QWEN2_5_SIZES = {
    "0.5B": _qwen2(896, 4864, 24, 14, 2, vocabulary=151_936, tied=True),
    "1.5B": _qwen2(1536, 8960, 28, 12, 2, vocabulary=151_936, tied=True),
    "3B": _qwen2(2048, 11008, 36, 16, 2, vocabulary=151_936, tied=True),
    "7B": _qwen2(3584, 18944, 28, 28, 4),
    "14B": _qwen2(5120, 13824, 48, 40, 8),
    "32B": _qwen2(5120, 27648, 64, 40, 8),
    "72B": _qwen2(8192, 29568, 80, 64, 8),
}
QWEN3_SIZES = {
    "0.6B": _qwen3(1024, 3072, 28, 16, tied=True),
    "1.7B": _qwen3(2048, 6144, 28, 16, tied=True),
    "4B": _qwen3(2560, 9728, 36, 32, tied=True),
    "8B": _qwen3(4096, 12288, 36, 32),
    "14B": _qwen3(5120, 17408, 40, 40),
    "32B": _qwen3(5120, 25600, 64, 64),
}


def _published() -> dict[str, Architecture]:
    models = {}
    for size, shape in QWEN2_5_SIZES.items():
        # Among the base models, 0.5B and 3B have 32 K positions, the others 128 K.
        long = size not in ("0.5B", "3B")
        models[f"Qwen/Qwen2.5-{size}"] = replace(shape, positions=128 * K) if long else shape
        models[f"Qwen/Qwen2.5-{size}-Instruct"] = shape
        if size != "72B":
            models[f"Qwen/Qwen2.5-Coder-{size}"] = shape
            models[f"Qwen/Qwen2.5-Coder-{size}-Instruct"] = shape
    for size, shape in QWEN3_SIZES.items():
        models[f"Qwen/Qwen3-{size}"] = shape
        if size != "32B":
            models[f"Qwen/Qwen3-{size}-Base"] = replace(shape, positions=32 * K)
    for kind in ("Instruct", "Thinking"):
        models[f"Qwen/Qwen3-4B-{kind}-2507"] = replace(
            QWEN3_SIZES["4B"], rope_theta=5e6, positions=256 * K
        )
    return models


PUBLISHED: Mapping[str, Architecture] = _published()
"""Every dense Qwen2.5, Qwen2.5-Coder and Qwen3 model, by hub id."""
