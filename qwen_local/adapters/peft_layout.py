"""The layout that PEFT reads and writes: `adapter_model.safetensors` with `adapter_config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qwen_local.adapters.lora import Adapter
from qwen_local.files import write_arrays, write_json


def peft_config(adapter: Adapter) -> dict[str, Any]:
    """The `adapter_config.json` that `PeftModel.from_pretrained` needs (`LoraConfig`)."""
    lora = adapter.lora
    everywhere = lora.layers == "all"
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.target_names),
        "layers_to_transform": None if everywhere else list(lora.blocks(adapter.layers)),
        "layers_pattern": None if everywhere else "layers",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }


def write_peft(adapter: Adapter, folder: Path) -> None:
    """Write the adapter for PEFT into an existing, empty folder."""
    arrays = {name: np.ascontiguousarray(a) for name, a in adapter.arrays.items()}
    write_arrays(folder / "adapter_model.safetensors", arrays, made_for="pt")
    write_json(folder / "adapter_config.json", peft_config(adapter))
