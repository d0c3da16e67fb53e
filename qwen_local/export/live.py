"""The variants of the model that an export is compared with."""

from __future__ import annotations

from qwen_local.backends.weights import Weights
from qwen_local.export.blocks import Variant, WeightSource, tensor_reader
from qwen_local.export.merge import merged_tensor
from qwen_local.export.proof import BASE, LIVE, MERGE
from qwen_local.resolve.resolve import Resolved


def live_variants(opened: Resolved, weights: Weights) -> dict[str, Variant]:
    """Return the live adapter on its base model, held as in training, and the base model alone.

    Args:
        opened: the adapter and its base model.
        weights: of the base model.
    """
    source = WeightSource.from_files(
        opened.model, weights, opened.known_adapter, opened.quantization
    )
    return {LIVE: Variant(source, opened.known_adapter.arrays), BASE: Variant(source)}


def merged_variant(opened: Resolved, weights: Weights) -> dict[str, Variant]:
    """Return the unrounded merge. Arguments as above."""
    linear = opened.model.architecture.linear_weights()
    adapter, quantization = opened.known_adapter, opened.quantization
    merge = WeightSource.from_arrays(
        opened.model,
        tensor_reader(weights),
        lambda name: merged_tensor(name, linear.get(name), adapter, weights, quantization),
    )
    return {MERGE: Variant(merge)}
