"""The model families that both engines train, one module each. Nothing here loads a framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_local.models.architecture import Architecture
from qwen_local.models.families.family import Family
from qwen_local.models.families.qwen2 import QWEN2
from qwen_local.models.families.qwen3 import QWEN3

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (QWEN2, QWEN3)}
"""Supported families, by `model_type` of config.json."""

TARGETS = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.targets))
"""Names that `lora.targets` may list."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture that a checked config.json describes."""
    return FAMILIES[config["model_type"]].from_config(config)
