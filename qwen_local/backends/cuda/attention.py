"""Causal attention of packed rows: one sequence, in which no row attends to another.

On a GPU one kernel computes all rows: PyTorch's own (`torch.nn.attention.varlen`, from 2.11 on) or
flash-attn's, if it is installed; both are FlashAttention-2 (arXiv:2307.08691) for 16-bit floats.
On a CPU, and in float32, each row is computed by itself.

Shapes: R = rows, T = positions of all rows, H and K = heads of queries and of keys, E = size of a
head.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qwen_local.backends.cuda.constants import flash_head

AMPERE = (8, 0)
"""Compute capability of the first cards that FlashAttention-2 runs on."""

Kernel = Callable[[Tensor, Tensor, Tensor, "Borders", float], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Borders:
    """Starts and ends of packed rows."""

    lengths: tuple[int, ...]
    """Positions of each of the R rows; 0 for a row of padding."""
    longest: int
    """At least the largest of the lengths."""
    positions_T: Tensor
    """int64 [T], on the device: each position's place in its row."""
    starts: Tensor
    """int32 [R + 1], on the device: start of each row, and the end of the last."""

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        to_device: Callable[[np.ndarray], Tensor],
        longest: int | None = None,
    ) -> Borders:
        """Return the borders of rows of these lengths.

        Args:
            lengths: of the rows.
            to_device: moves an array.
            longest: at least the largest of the lengths, which it is by default.

        >>> borders = Borders.of([2, 3], torch.from_numpy)
        >>> borders.positions_T.tolist(), borders.starts.tolist()
        ([0, 1, 0, 1, 2], [0, 2, 5])
        """
        starts = np.concatenate([[0], np.cumsum(lengths)])
        places_T = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        return cls(
            tuple(lengths),
            max(lengths) if longest is None else longest,
            to_device(places_T),
            to_device(starts.astype(np.int32)),
        )


def attention(
    queries_THE: Tensor, keys_TKE: Tensor, values_TKE: Tensor, borders: Borders, *, scale: float
) -> Tensor:
    """Compute the attention output over each position and those before it in its row: [T, H, E].

    Args:
        queries_THE: any float dtype; the others likewise.
        keys_TKE: H is a multiple of K.
        values_TKE: likewise.
        borders: of the rows.
        scale: of the products.
    """
    qkv = queries_THE, keys_TKE, values_TKE
    kernel = kernel_for(queries_THE.device, queries_THE.dtype, queries_THE.shape[-1])
    if kernel is not None:
        return kernel(*qkv, borders, scale)
    return row_by_row(*qkv, borders, scale)


def row_by_row(
    queries_THE: Tensor, keys_TKE: Tensor, values_TKE: Tensor, borders: Borders, scale: float
) -> Tensor:
    """Compute the same on any device, one row after the other."""
    if queries_THE.is_cuda:  # no float32 kernel there takes fewer key heads than query heads
        times = queries_THE.shape[1] // keys_TKE.shape[1]
        keys_TKE, values_TKE = (x.repeat_interleave(times, 1) for x in (keys_TKE, values_TKE))
    grouped = keys_TKE.shape[1] < queries_THE.shape[1]
    split = (x.split(borders.lengths) for x in (queries_THE, keys_TKE, values_TKE))
    outputs = []
    for row in zip(*split, strict=True):
        if not len(row[0]):
            continue
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in row)
        attn = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
        )
        outputs.append(attn[0].transpose(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@functools.cache
def kernel_for(device: torch.device, dtype: torch.dtype, size: int) -> Kernel | None:
    """Return one kernel for all rows, if one computes this dtype and head size on this device."""
    halves = dtype in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or not halves or not flash_head(size):
        return None
    return flash_kernel() if torch.cuda.get_device_capability(device) >= AMPERE else None


@functools.cache
def flash_kernel() -> Kernel | None:
    """Return one kernel for all rows on a GPU, if one is installed."""
    with suppress(ImportError):
        varlen = importlib.import_module("torch.nn.attention.varlen").varlen_attn
        takes = inspect.signature(varlen).parameters
        if "window_size" in takes and "scale" in takes:
            # 2.11 has no `enable_gqa`: its kernel takes fewer key heads without being asked.
            grouped = {"enable_gqa": True} if "enable_gqa" in takes else {}
            return _kernel(varlen, scale_is="scale", window_size=(-1, 0), **grouped)
    with suppress(ImportError):
        varlen = importlib.import_module("flash_attn").flash_attn_varlen_func
        return _kernel(varlen, scale_is="softmax_scale", causal=True)
    return None


def _kernel(varlen: Callable[..., Tensor], *, scale_is: str, **options: object) -> Kernel:
    def kernel(q: Tensor, k: Tensor, v: Tensor, borders: Borders, scale: float) -> Tensor:
        starts, longest = borders.starts, borders.longest
        settings = {**options, scale_is: scale}
        return varlen(q, k, v, starts, starts, longest, longest, **settings)

    return kernel
