"""The layout that PEFT reads and writes: `adapter_model.safetensors` with `adapter_config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_local.adapters.lora import Adapter, target_names
from qwen_local.files import array_bytes, json_bytes


def peft_config(adapter: Adapter) -> dict[str, Any]:
    """Return the `adapter_config.json` that `PeftModel.from_pretrained` needs (`LoraConfig`)."""
    lora = adapter.lora
    targets, blocks = _targets(adapter)
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


def _targets(adapter: Adapter) -> tuple[list[str], list[int] | None]:
    """Return (target_modules, layers_to_transform): short names and blocks, or full paths."""
    places = adapter.places
    names = target_names(places, adapter.blocks)
    blocks = sorted({block for block, _ in places})
    covered = sum(name in adapter.blocks[block].linears for block in blocks for name in names)
    if len(places) < covered:
        return [f"layers.{block}.{path}" for block, path in places], None
    return list(names), None if len(blocks) == len(adapter.blocks) else blocks


def peft_files(adapter: Adapter) -> dict[str, bytes]:
    """Return the files of a folder that `PeftModel.from_pretrained` loads, by name."""
    return {
        "adapter_model.safetensors": array_bytes(adapter.arrays, made_for="pt"),
        "adapter_config.json": json_bytes(peft_config(adapter)),
    }


def write_peft(adapter: Adapter, folder: Path) -> None:
    """Write the adapter for PEFT into an existing, empty folder."""
    for name, content in peft_files(adapter).items():
        (folder / name).write_bytes(content)
