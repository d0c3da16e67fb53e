"""What GGUF calls the tensors of a model and of an adapter."""

from __future__ import annotations

from collections.abc import Iterable

import gguf

from qwen_local.adapters.lora import Place, lora_name
from qwen_local.models.architecture import Architecture, block_path

ARCHITECTURES = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
"""By `model_type`, which is also what GGUF calls them."""


def tensor_names(architecture: Architecture) -> dict[str, str]:
    """Name in safetensors -> name in GGUF, for every tensor of the model and in its order.

    A tied model has no head there either: llama.cpp takes the embedding for it.
    """
    family = ARCHITECTURES[architecture.model_type]
    known = gguf.get_tensor_name_map(family, architecture.layers)
    names: dict[str, str] = {}
    for name in architecture.weight_shapes():
        theirs = known.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        names[name] = theirs
    return names


def matrix_names(architecture: Architecture, places: Iterable[Place]) -> dict[str, str]:
    """PEFT's name of an adapter's matrix -> its name in GGUF, A before B.

    Args:
        architecture: of the base.
        places: the linear layers that carry the adapter.
    """
    names = tensor_names(architecture)
    return {
        lora_name(layer, target, matrix): (
            f"{names[f'model.layers.{layer}.{block_path(target)}.weight']}.lora_{matrix.lower()}"
        )
        for layer, target in places
        for matrix in ("A", "B")
    }
