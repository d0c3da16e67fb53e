"""The variants of the model that an export is compared with."""

from __future__ import annotations

from dataclasses import replace

from qwen_local.adapters.lora import Adapter
from qwen_local.backends.base import Weights
from qwen_local.export.blocks import Variant, WeightSource, tensor_reader
from qwen_local.export.merge import merged_tensor
from qwen_local.export.opening import Opened
from qwen_local.export.proof import BASE, BASE_FLOATS, LIVE, MERGE


def live_variants(opened: Opened, weights: Weights) -> dict[str, Variant]:
    """Return the live adapter on its base model, held as in training, and the base model alone.

    Args:
        opened: the adapter and its base model.
        weights: of the base model.
    """
    source = WeightSource.from_files(opened.base, weights, opened.adapter, opened.held)
    return {LIVE: Variant(source, opened.adapter.arrays), BASE: Variant(source)}


def merged_variants(opened: Opened, weights: Weights) -> dict[str, Variant]:
    """Return the unrounded merge and, if live layers round their inputs, the base as floats.

    Arguments as above.
    """
    variants = {MERGE: Variant(_merged(opened, weights, opened.adapter))}
    if opened.rounds_inputs:
        no_adapter = replace(opened.adapter, arrays={})
        variants[BASE_FLOATS] = Variant(_merged(opened, weights, no_adapter))
    return variants


def _merged(opened: Opened, weights: Weights, adapter: Adapter) -> WeightSource:
    """Return the base model's weights as floats with an adapter merged into them."""
    linear = opened.base.architecture.linear_weights()
    return WeightSource.from_arrays(
        opened.base,
        tensor_reader(weights),
        lambda name: merged_tensor(name, linear.get(name), adapter, weights, opened.held),
    )
