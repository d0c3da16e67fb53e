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
from qwen_local.models.architecture import block_path

PREFIX = "base_model.model."


def to_mlx(name: str) -> str:
    """PEFT's name of a matrix -> mlx-lm's.

    >>> to_mlx("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight")
    'model.layers.3.self_attn.q_proj.lora_a'
    """
    path, matrix, _ = name.removeprefix(PREFIX).rsplit(".", 2)
    return f"{path}.{matrix.lower()}"


def to_peft(name: str) -> str:
    """mlx-lm's name of a matrix -> PEFT's; the name of anything else stays as it is.

    >>> to_peft("model.layers.3.self_attn.q_proj.lora_b")
    'base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight'
    """
    path, _, matrix = name.rpartition(".")
    if matrix not in ("lora_a", "lora_b"):
        return name
    return f"{PREFIX}{path}.lora_{matrix[-1].upper()}.weight"


def mlx_config(adapter: Adapter) -> dict[str, Any]:
    """The `adapter_config.json` that `mlx_lm.load(..., adapter_path=...)` needs."""
    lora = adapter.lora
    return {
        "fine_tune_type": "lora",
        "model": adapter.base,
        "num_layers": len(lora.blocks(adapter.layers)),
        "lora_parameters": {
            "rank": lora.rank,
            "scale": lora.scale,
            "dropout": lora.dropout,
            "keys": [block_path(target) for target in lora.target_names],
        },
    }


def write_mlx(adapter: Adapter, folder: Path) -> None:
    """Write the adapter for mlx-lm into an existing, empty folder."""
    arrays = {to_mlx(name): np.ascontiguousarray(a.T) for name, a in adapter.arrays.items()}
    write_arrays(folder / "adapters.safetensors", arrays, made_for="mlx")
    write_json(folder / "adapter_config.json", mlx_config(adapter))
