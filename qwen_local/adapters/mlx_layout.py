"""The layout that mlx-lm reads and writes: `adapters.safetensors` with `adapter_config.json`.

mlx-lm stores the transpose of PEFT's matrices, lora_a [in, r] and lora_b [r, out], and the
multiplier itself where PEFT stores alpha and rank (`tuner/lora.py`, `tuner/utils.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qwen_local.adapters.lora import Adapter
from qwen_local.files import write_arrays, write_json
from qwen_local.models.architecture import LINEARS, block_path

PREFIX = "base_model.model."
ARRAYS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
"""mlx-lm's name of an array of a linear layer -> PEFT's."""


def to_mlx(name: str) -> str:
    """PEFT's name of an array -> mlx-lm's.

    >>> to_mlx("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight")
    'model.layers.3.self_attn.q_proj.lora_a'
    """
    path = name.removeprefix(PREFIX)
    for theirs, ours in ARRAYS.items():
        if path.endswith(f".{ours}"):
            return path.removesuffix(ours) + theirs
    return name


def to_peft(name: str) -> str:
    """mlx-lm's name of an array -> PEFT's; the name of anything else stays as it is.

    >>> to_peft("model.layers.3.self_attn.q_proj.lora_b")
    'base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight'
    """
    path, _, what = name.rpartition(".")
    return f"{PREFIX}{path}.{ARRAYS[what]}" if what in ARRAYS else name


def mlx_config(adapter: Adapter) -> dict[str, Any]:
    """The `adapter_config.json` that `mlx_lm.load(..., adapter_path=...)` needs."""
    lora, places = adapter.lora, adapter.places
    targets = {target for _, target in places}
    return {
        "fine_tune_type": "dora" if adapter.dora else "lora",
        "model": adapter.base,
        # Of the last blocks; in those that have no arrays mlx-lm's own begin at zero.
        "num_layers": adapter.layers - min(layer for layer, _ in places),
        "lora_parameters": {
            "rank": lora.rank,
            "scale": lora.scale,
            "dropout": lora.dropout,
            "keys": [block_path(target) for target in LINEARS if target in targets],
        },
    }


def write_mlx(adapter: Adapter, folder: Path) -> None:
    """Write the adapter for mlx-lm into an existing, empty folder."""
    arrays = {to_mlx(name): np.ascontiguousarray(a.T) for name, a in adapter.arrays.items()}
    write_arrays(folder / "adapters.safetensors", arrays, made_for="mlx")
    write_json(folder / "adapter_config.json", mlx_config(adapter))
