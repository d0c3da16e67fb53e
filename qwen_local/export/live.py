"""The voices that an export is compared with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qwen_local.adapters.lora import Adapter
from qwen_local.backends.weights import Weights
from qwen_local.export.blocks import Source, Voice, in_block_0, of_arrays, of_files, reader
from qwen_local.export.merge import linear_names, merged_tensor
from qwen_local.export.opening import Opened
from qwen_local.export.proof import BARE, FLOATS, LIVE, MERGE


def live_voices(opened: Opened, weights: Weights) -> dict[str, Voice]:
    """The adapter on its base, held as it was in training, and the base alone.

    Args:
        opened: the adapter and its base.
        weights: of the base.
    """
    source = of_files(opened.base, weights, opened.adapter, opened.held)
    return {LIVE: Voice(source, opened.adapter.arrays), BARE: Voice(source)}


def merged_voices(opened: Opened, weights: Weights) -> dict[str, Voice]:
    """The merge before it is rounded, and what its layers round otherwise; arguments as above."""
    voices = {MERGE: Voice(_merged(opened, weights, opened.adapter))}
    if opened.rounds_inputs:
        voices[FLOATS] = Voice(_merged(opened, weights, replace(opened.adapter, arrays={})))
    return voices


def _merged(opened: Opened, weights: Weights, adapter: Adapter) -> Source:
    """The base's weights as floats with an adapter in them."""
    linear = linear_names(opened.base.architecture)
    names = opened.base.architecture.weight_shapes()

    def block(number: int) -> dict[str, np.ndarray]:
        prefix = f"model.layers.{number}."
        return {
            in_block_0(name): merged_tensor(name, linear.get(name), adapter, weights, opened.held)
            for name in names
            if name.startswith(prefix)
        }

    return of_arrays(opened.base, reader(weights), block)
