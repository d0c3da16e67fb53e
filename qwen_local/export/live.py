"""The variants of the model that an export is compared with."""

from __future__ import annotations

from dataclasses import replace

from qwen_local.adapters.lora import Adapter
from qwen_local.backends.select import rounds_inputs
from qwen_local.backends.weights import Weights
from qwen_local.export.blocks import Variant, WeightSource, tensor_reader
from qwen_local.export.merge import merged_tensor
from qwen_local.export.proof import BASE, BASE_FLOATS, LIVE, MERGE
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


def merged_variants(opened: Resolved, weights: Weights) -> dict[str, Variant]:
    """Return the unrounded merge and, if live layers round their inputs, the base as floats.

    Arguments as above.
    """
    variants = {MERGE: Variant(_merged(opened, weights, opened.known_adapter))}
    if rounds_inputs(opened.choice, opened.quantization, opened.architecture.stored):
        no_adapter = replace(opened.known_adapter, arrays={})
        variants[BASE_FLOATS] = Variant(_merged(opened, weights, no_adapter))
    return variants


def _merged(opened: Resolved, weights: Weights, adapter: Adapter) -> WeightSource:
    """Return the base model's weights as floats with an adapter merged into them."""
    linear = opened.model.architecture.linear_weights()
    return WeightSource.from_arrays(
        opened.model,
        tensor_reader(weights),
        lambda name: merged_tensor(name, linear.get(name), adapter, weights, opened.quantization),
    )
