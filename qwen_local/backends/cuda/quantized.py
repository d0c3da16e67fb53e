"""Frozen linear layers in 4 or 8 bits, by bitsandbytes.

`4bit` is NF4 in blocks of 64 with the blocks' scales quantized once more (QLoRA, arXiv:2305.14314);
`8bit` is the weights of LLM.int8() (arXiv:2208.07339), a scale for each row. Its products are not
used: they round the inputs of a layer, and stop the host in every layer to look for outliers among
them. Embeddings, norms and the head stay floats. Weights are quantized from the dtype of the files,
so that every machine gets the same codes, whatever dtype it computes in.
"""

from __future__ import annotations

from qwen_local.backends.cuda import before_import  # noqa: F401  # first: it imports bitsandbytes

# isort: split
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

from qwen_local.backends.base import Setup
from qwen_local.backends.cuda.fused import FrozenLinear
from qwen_local.backends.weights import QUANTIZED_BITS
from qwen_local.job.schema import Quantization
from qwen_local.models.config import engine_config
from qwen_local.models.tensor_check import float_layers

NF4: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True, "blocksize": 64}
INT8_LEVELS = 127.0
"""`int8_vectorwise_quant` maps the largest entry of a row to this."""


def load(setup: Setup, device: torch.device) -> transformers.PreTrainedModel:
    """Load the frozen model on its device, quantized as the setup or its files ask."""
    dtype = getattr(torch, setup.dtype)
    stored, settings = setup.model.architecture.stored, engine_config(setup.model.config)
    bits = QUANTIZED_BITS.get(setup.quantization) if stored is None else stored.bits
    options: dict[str, object] = {"dtype": dtype}
    if bits is not None:
        options = {"dtype": "auto", "device_map": {"": device}}
        if stored is None:
            options["quantization_config"] = bitsandbytes_config(bits, dtype)
        else:
            floats = float_layers(setup.model.folder, setup.model.architecture)
            settings["quantization_config"] = bitsandbytes_config(bits, dtype, floats).to_dict()
    with _quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            setup.model.folder,
            config=transformers.AutoConfig.for_model(**settings),
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="sdpa",
            **options,
        )
    if bits is None:
        return model.to(device)
    settle(model, dtype)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' warnings about the weights, which were checked before.

    It would warn that it does not tie a head that a file stores beside the embedding; the engine
    ties it afterwards.
    """
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(level)


def bitsandbytes_config(
    bits: int, dtype: torch.dtype, floats: Sequence[str] = ()
) -> transformers.BitsAndBytesConfig:
    """Return the settings of NF4 or LLM.int8().

    Args:
        bits: 4 or 8.
        dtype: to compute in.
        floats: linear layers that stay floats, beside the head.
    """
    chosen: dict[str, object] = {"load_in_8bit": True}
    if bits == 4:
        chosen = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": NF4["quant_type"],
            "bnb_4bit_use_double_quant": NF4["compress_statistics"],
            "bnb_4bit_compute_dtype": dtype,
        }
    kept = ["lm_head", *map(re.escape, floats)]  # transformers reads them as patterns
    return transformers.BitsAndBytesConfig(llm_int8_skip_modules=kept, **chosen)


def settle(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Make a model that was quantized from its files' dtype compute in another, in products alone.

    In 4 bits bitsandbytes dequantizes to the dtype that was quantized, and would round there. On a
    CPU with AVX512-BF16 it repacks the weights in place in the first forward pass outside training,
    after which there is no gradient and no way back.
    """
    from bitsandbytes.nn.modules import (  # optional package
        Int8Params,
        Linear4bit,
        Linear8bitLt,
        Params4bit,
    )

    class WeightOnlyInt8(Linear8bitLt):
        """A layer of bitsandbytes that dequantizes its weight and multiplies."""

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = FrozenLinear.apply(x, partial(dense_weight, self, x.dtype), self.bias)
            return output

    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            assert isinstance(module.weight, Int8Params)
            scales = module.weight.SCB / INT8_LEVELS
            module.register_buffer("row_scales", scales, persistent=False)
            module.__class__ = WeightOnlyInt8
        elif isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            assert isinstance(module.weight, Params4bit)
            module.weight.quant_state.dtype = dtype
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def dense_weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """Return the weight of a frozen linear layer [O, I]; a quantized one is dequantized each time.

    Args:
        layer: of PyTorch, or of bitsandbytes after `settle`.
        dtype: of the result. A weight that is not quantized has it already.
    """
    weight: Tensor = layer.weight
    if weight.dtype == torch.int8:
        # In float32, rounded once, in one pass.
        dense = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        return torch.mul(weight.data, layer.row_scales[:, None], out=dense)
    if (state := getattr(weight, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit  # optional package

        values: Tensor = dequantize_4bit(weight.data, state)
        return values.to(dtype)
    return weight


def dequantized(weight: Tensor, quantization: Quantization) -> Tensor:
    """Quantize and dequantize a weight: float32, same shape.

    Args:
        weight: as the model's file has it.
        quantization: `4bit` or `8bit`.
    """
    from bitsandbytes import functional

    if quantization == "4bit":
        codes, state = functional.quantize_4bit(weight.float(), **NF4)
        values: Tensor = functional.dequantize_4bit(codes, state)
        return values
    codes, row_scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
    return codes.float() * (row_scales[:, None] / INT8_LEVELS)
