"""The layout that PEFT reads and writes: `adapter_model.safetensors` with `adapter_config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_local.adapters.lora import Adapter
from qwen_local.files import array_bytes, json_bytes
from qwen_local.models.architecture import LINEARS, block_path


def peft_config(adapter: Adapter) -> dict[str, Any]:
    """The `adapter_config.json` that `PeftModel.from_pretrained` needs (`LoraConfig`)."""
    lora = adapter.lora
    targets, blocks = _where(adapter)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "use_dora": adapter.dora,
        "lora_dropout": lora.dropout,
        "target_modules": targets,
        "layers_to_transform": blocks,
        "layers_pattern": None if blocks is None else "layers",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }


def _where(adapter: Adapter) -> tuple[list[str], list[int] | None]:
    """(target_modules, layers_to_transform): short names and blocks, or else whole paths."""
    places = adapter.places
    blocks = sorted({layer for layer, _ in places})
    targets = [name for name in LINEARS if any(target == name for _, target in places)]
    if len(places) < len(blocks) * len(targets):
        return [f"layers.{layer}.{block_path(target)}" for layer, target in places], None
    return targets, None if len(blocks) == adapter.layers else blocks


def peft_files(adapter: Adapter) -> dict[str, bytes]:
    """The files of a folder that `PeftModel.from_pretrained` loads, by name."""
    return {
        "adapter_model.safetensors": array_bytes(adapter.arrays, made_for="pt"),
        "adapter_config.json": json_bytes(peft_config(adapter)),
    }


def write_peft(adapter: Adapter, folder: Path) -> None:
    """Write the adapter for PEFT into an existing, empty folder."""
    for name, content in peft_files(adapter).items():
        (folder / name).write_bytes(content)
