"""Frozen linear layers in 4 or 8 bits: MLX's affine quantization in groups of 64.

Embeddings, norms and the head stay floats, as in the PyTorch engine; a folder that is already
quantized (`mlx-community/...-4bit`) may have quantized them as well, and is used as it is. Weights
are quantized from the dtype of the files, so that every machine gets the same codes; scales and
biases are then rounded to the computing dtype, where that is another.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from qwen_local.backends.mlx.constants import GROUP
from qwen_local.backends.weights import QUANTIZED_BITS
from qwen_local.job.schema import Quantization
from qwen_local.models.architecture import Architecture


def quantize(model: nn.Module, quantization: Quantization, architecture: Architecture) -> None:
    """Quantize the linear layers of a model's blocks in place."""
    linear = architecture.linear_weights()
    nn.quantize(
        model,
        group_size=GROUP,
        bits=QUANTIZED_BITS[quantization],
        class_predicate=lambda path, _: f"{path}.weight" in linear,
    )


def dequantized(weight: mx.array, quantization: Quantization) -> mx.array:
    """Quantize and dequantize a weight: float32, same shape.

    Args:
        weight: as the model's file has it.
        quantization: `4bit` or `8bit`.
    """
    bits = QUANTIZED_BITS[quantization]
    codes, scales, biases = mx.quantize(weight, group_size=GROUP, bits=bits)
    return from_codes(codes, scales, biases, bits=bits, group=GROUP)


def from_codes(
    codes: mx.array, scales: mx.array, biases: mx.array, *, bits: int, group: int
) -> mx.array:
    """Dequantize a weight, float32 [out, in]."""
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return mx.dequantize(codes, scales, biases, group_size=group, bits=bits)


def back(layer: nn.Module, gradient_CV: mx.array) -> mx.array:
    """Return gradient @ weight for a layer [V, D] that may be quantized: [C, D]."""
    if "scales" not in layer:
        return gradient_CV.astype(layer.weight.dtype) @ layer.weight
    return mx.quantized_matmul(
        gradient_CV.astype(layer.scales.dtype),
        layer.weight,
        layer.scales,
        layer.biases,
        transpose=False,
        group_size=layer.group_size,
        bits=layer.bits,
    )
