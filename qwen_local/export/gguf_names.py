"""Names of a model's and an adapter's tensors in GGUF."""

from __future__ import annotations

from collections.abc import Iterable

import gguf

from qwen_local.adapters.lora import lora_name
from qwen_local.models.architecture import Architecture, Place, block_prefix
from qwen_local.models.families import FAMILIES


def gguf_architecture(architecture: Architecture) -> str:
    """Return the `general.architecture` of a GGUF file."""
    return FAMILIES[architecture.model_type].gguf


def tensor_names(architecture: Architecture) -> dict[str, str]:
    """Map every tensor's safetensors name to its GGUF name, in the order of the architecture.

    A tied model has no head in GGUF either: llama.cpp uses the embedding.
    """
    name_of = gguf_architecture(architecture)
    model = next(model for model, name in gguf.MODEL_ARCH_NAMES.items() if name == name_of)
    known = gguf.get_tensor_name_map(model, architecture.layers)
    names: dict[str, str] = {}
    for name in architecture.weight_shapes():
        theirs = known.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        names[name] = theirs
    return names


def matrix_names(architecture: Architecture, places: Iterable[Place]) -> dict[str, str]:
    """Map PEFT's name of each adapter matrix to its GGUF name, A before B.

    Args:
        architecture: of the base model.
        places: the linear layers that carry the adapter.
    """
    names = tensor_names(architecture)
    return {
        lora_name(block, path, matrix): (
            f"{names[f'{block_prefix(block)}{path}.weight']}.lora_{matrix.lower()}"
        )
        for block, path in places
        for matrix in ("A", "B")
    }
