"""The layout that mlx-lm reads and writes: `adapters.safetensors` with `adapter_config.json`.

mlx-lm stores PEFT's matrices transposed, lora_a [in, r] and lora_b [r, out], and the scale itself
instead of alpha and rank (`tuner/lora.py`, `tuner/utils.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qwen_local.adapters.lora import PREFIX, Adapter, target_names
from qwen_local.files import write_arrays, write_json
from qwen_local.models.architecture import linear_paths

ARRAYS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
"""mlx-lm's name of an array of a linear layer -> PEFT's."""


def to_mlx(name: str) -> str:
    """Convert PEFT's name of an array to mlx-lm's.

    >>> to_mlx("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight")
    'model.layers.3.self_attn.q_proj.lora_a'
    """
    path = name.removeprefix(PREFIX)
    for theirs, ours in ARRAYS.items():
        if path.endswith(f".{ours}"):
            return path.removesuffix(ours) + theirs
    return name


def to_peft(name: str) -> str:
    """Convert mlx-lm's name of an array to PEFT's; return any other name unchanged.

    >>> to_peft("model.layers.3.self_attn.q_proj.lora_b")
    'base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight'
    """
    path, _, what = name.rpartition(".")
    return f"{PREFIX}{path}.{ARRAYS[what]}" if what in ARRAYS else name


def mlx_config(adapter: Adapter) -> dict[str, Any]:
    """Return the `adapter_config.json` that `mlx_lm.load(..., adapter_path=...)` needs."""
    lora, places = adapter.lora, adapter.places
    paths = linear_paths(adapter.blocks)
    return {
        "fine_tune_type": "dora" if adapter.dora else "lora",
        "model": adapter.base,
        # Counted from the last block; in blocks without arrays, mlx-lm's own start at zero.
        "num_layers": len(adapter.blocks) - min(block for block, _ in places),
        "lora_parameters": {
            "rank": lora.rank,
            "scale": lora.scale,
            "dropout": lora.dropout,
            "keys": [paths[name] for name in target_names(places, adapter.blocks)],
        },
    }


def write_mlx(adapter: Adapter, folder: Path) -> None:
    """Write the adapter for mlx-lm into an existing, empty folder."""
    arrays = {to_mlx(name): np.ascontiguousarray(a.T) for name, a in adapter.arrays.items()}
    write_arrays(folder / "adapters.safetensors", arrays, made_for="mlx")
    write_json(folder / "adapter_config.json", mlx_config(adapter))
