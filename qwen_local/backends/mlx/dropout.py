"""Dropout whose masks follow from a key, and blocks that are computed again in the backward pass.

`mlx.nn.Dropout` draws from the global generator. A block that is checkpointed would then draw other
masks when it is computed again, and its gradient would be that of no function at all.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn


class DropoutKeys:
    """The keys of one forward pass, one for each layer that drops something."""

    def __init__(self) -> None:
        self.layers = 0
        self._keys: mx.array | None = None

    def draw(self, key: mx.array) -> None:
        """Take the key of this pass, uint32 [2]."""
        if self.layers:
            self._keys = mx.random.split(key, self.layers)

    def of(self, layer: int) -> mx.array:
        """The key of a layer."""
        assert self._keys is not None
        return self._keys[layer]


class KeyedDropout(nn.Module):  # type: ignore[misc]  # its class has no type
    """Zeroes a share of its input in training and scales the rest up; the mask is the key's."""

    def __init__(self, rate: float, keys: DropoutKeys) -> None:
        super().__init__()
        self._keep = 1.0 - rate
        self._keys = keys
        self._layer = keys.layers
        keys.layers += 1

    def __call__(self, x: mx.array) -> mx.array:
        """The input with its mask applied; the input itself outside training."""
        if not self.training:
            return x
        mask = mx.random.bernoulli(self._keep, x.shape, key=self._keys.of(self._layer))
        return mx.where(mask, x * (1.0 / self._keep), mx.zeros_like(x))


def put_dropout(model: nn.Module, rate: float) -> DropoutKeys:
    """Replace the dropout of every LoRA layer; the keys that all of them read."""
    keys = DropoutKeys()
    for _, module in model.named_modules():
        if rate and "lora_a" in module:
            module.dropout = KeyedDropout(rate, keys)
    return keys


def checkpoint_blocks(model: nn.Module) -> None:
    """Recompute each block in the backward pass instead of keeping its activations.

    The blocks of this model get a class of their own; mlx-lm's class stays as it is, so other
    models of the process are not touched.
    """
    block = type(model.layers[0])

    def call(self: Any, *args: Any) -> mx.array:
        def inner(parameters: dict[str, Any], *args: Any) -> mx.array:
            self.update(parameters)
            return block.__call__(self, *args)

        return mx.checkpoint(inner)(self.trainable_parameters(), *args)

    checkpointed = type(f"Checkpointed{block.__name__}", (block,), {"__call__": call})
    for layer in model.layers:
        layer.__class__ = checkpointed
