"""Dropout with masks from a key, and blocks that are recomputed in the backward pass.

`mlx.nn.Dropout` draws from the global generator. A checkpointed block would then draw different
masks when it is recomputed, and its gradient would belong to no function at all.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn


class DropoutKeys:
    """Dropout keys of one forward pass, one for each layer with dropout."""

    def __init__(self) -> None:
        self.layers = 0
        self._keys: mx.array | None = None

    def draw(self, key: mx.array) -> None:
        """Set the key of this pass, uint32 [2]."""
        if self.layers:
            self._keys = mx.random.split(key, self.layers)

    def of(self, layer: int) -> mx.array:
        """Return the key of a layer."""
        assert self._keys is not None
        return self._keys[layer]


class KeyedDropout(nn.Module):  # type: ignore[misc]  # its class has no type
    """Zeroes a share of its input in training and scales up the rest; its mask depends on a key."""

    def __init__(self, rate: float, keys: DropoutKeys) -> None:
        super().__init__()
        self._keep = 1.0 - rate
        self._keys = keys
        self._layer = keys.layers
        keys.layers += 1

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the mask in training; otherwise return the input itself."""
        if not self.training:
            return x
        mask = mx.random.bernoulli(self._keep, x.shape, key=self._keys.of(self._layer))
        return mx.where(mask, x * (1.0 / self._keep), mx.zeros_like(x))


def put_dropout(model: nn.Module, rate: float) -> DropoutKeys:
    """Replace the dropout of every LoRA layer and return the keys that all of them read."""
    keys = DropoutKeys()
    for _, module in model.named_modules():
        if rate and "lora_a" in module:
            module.dropout = KeyedDropout(rate, keys)
    return keys


def checkpoint_blocks(model: nn.Module) -> None:
    """Recompute each block in the backward pass instead of keeping its activations.

    The blocks of this model get a class of their own; mlx-lm's class stays as it is, so other
    models of the process are not changed.
    """
    block = type(model.layers[0])

    def call(self: Any, *args: Any) -> mx.array:
        # `mx.checkpoint` differentiates with respect to the arguments of its function only; arrays
        # that the block merely holds would count as constants, and the adapter would get no
        # gradient. So the trainable arrays go in as an argument and are put into the block from
        # there: in the forward pass and again when it is recomputed, each time those that MLX
        # traces. Frozen weights and the dropout keys stay constants, as they should.
        def inner(parameters: dict[str, Any], *args: Any) -> mx.array:
            self.update(parameters)
            return block.__call__(self, *args)

        return mx.checkpoint(inner)(self.trainable_parameters(), *args)

    # Python looks up `__call__` on the class, not on the object, so an attribute of the block would
    # have no effect; and a wrapper module around it would add a level to all parameter names.
    checkpointed = type(f"Checkpointed{block.__name__}", (block,), {"__call__": call})
    for layer in model.layers:
        layer.__class__ = checkpointed
