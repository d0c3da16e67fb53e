"""What only a card can show: its attention kernel, and its memory that runs out.

Shapes: R = rows, T = positions of all rows, H and K = heads of queries and of keys, E = size of a
head.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.agreement import ONE_ROW, RATE, Place, opened, rows_apart
from benchmarks.made_rows import made_rows
from benchmarks.parts import Device, Figure, check, relative, unless_zero
from benchmarks.timing import release
from qwen_local.backends.cuda.attention import Borders, attention, flash_kernel

LENGTHS = ((1,), (5, 1, 17), (300, 7, 900, 64, 65, 2), (2048,), (128,) * 12)
"""Of the rows of a sequence: single positions, tiles of a kernel, their edges."""
HEADS = ((4, 2, 64), (16, 8, 128), (32, 8, 128))
"""(H, K, E) of the embedded model, of Qwen3-0.6B and 1.7B, of 8B."""
AS_NEAR = 2.0
"""How much further from float32 than PyTorch's own attention in the same dtype ours may be: twice,
as another order of sums may be. (The measure that FlashAttention's own tests take.)"""
SLACK = 1e-5
"""Where PyTorch's own is exact: a row of one position has no gradient of its query."""
USUAL = 0.1
"""PyTorch's own is no measure if its error is above this share of the largest value."""
SAME = 1e-4
"""Bound on float32 attention on the card against the CPU, relative to its largest value."""
ROOM = 2 << 30
"""Bytes that are left to a step which would take four times as many, and for a row of it enough."""


def attention_against_sdpa(device: Device) -> Iterator[Figure]:
    """Compare forward and gradients of packed rows with float32 attention that is written out."""
    yield {"figure": "there is one kernel for all rows", "value": flash_kernel() is not None}
    if device == "gpu":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.enable_cudnn_sdp(False)  # half a second for each new length
    dtype = torch.bfloat16 if device == "gpu" else torch.float32
    names = ("output", "gradient of queries", "gradient of keys", "gradient of values")
    furthest, largest = np.zeros(len(names)), np.zeros((len(names), 2))
    for heads in HEADS if device == "gpu" else HEADS[:1]:
        for lengths in LENGTHS:
            given = _drawn(sum(lengths), heads, device)
            exact = _written_out([x.float() for x in given], lengths)
            plain = _by_row([x.to(dtype) for x in given], lengths)
            ours = _ours([x.to(dtype) for x in given], lengths)
            for i, (reference, near, found) in enumerate(zip(exact, plain, ours, strict=True)):
                error, usual = (float((x.float() - reference).abs().max()) for x in (found, near))
                sizes = [float(x.abs().max()) for x in (found, reference)]
                measure = usual + SLACK if usual <= USUAL * max(sizes[1], USUAL) else np.nan
                # Not `max`: of 0 and NaN it is 0.
                furthest[i] = np.maximum(furthest[i], error / measure)
                largest[i] = np.maximum(largest[i], sizes)
    yield check("float32 attention there against the CPU", _against_cpu(device), at_most=SAME)
    for name, times, sizes in zip(names, furthest.tolist(), largest.tolist(), strict=True):
        said = f"attention's {name}: its error in {str(dtype)[6:]} to sdpa's"
        yield check(said, unless_zero(times, *sizes), at_most=AS_NEAR)


def _against_cpu(device: Device) -> float:
    """Return the largest difference of what the others are measured by, relative; NaN for zeros."""
    there, here = (
        _written_out([x.float() for x in _drawn(sum(LENGTHS[1]), HEADS[0], place)], LENGTHS[1])
        for place in (device, "cpu")
    )
    apart = []
    for a, b in zip((x.cpu() for x in there), here, strict=True):
        error, *sizes = (float(x.abs().max()) for x in (a - b, a, b))
        apart.append(unless_zero(error / (sizes[1] or 1), *sizes))
    return float(np.max(apart))  # NaN if one of them is


def _drawn(positions: int, heads: tuple[int, int, int], device: Device) -> list[Tensor]:
    """Queries, keys, values and the gradient of the output, as bfloat16 can hold them."""
    count, kv_count, size = heads
    generator = torch.Generator().manual_seed(positions)
    place = torch.device("cuda" if device == "gpu" else "cpu")
    return [
        torch.randn(positions, n, size, generator=generator).bfloat16().to(place)
        for n in (count, kv_count, kv_count, count)
    ]


def _written_out(given: list[Tensor], lengths: tuple[int, ...]) -> list[Tensor]:
    """Return (output, gradients of queries, keys and values) of softmax(Q K^T) V over all rows.

    PyTorch computes float32 attention of a row of one position as an outer product, which newer
    releases leave to Triton, and Triton needs a C compiler. A position of zeros in front, a row of
    its own, keeps every product here larger.
    """
    *inputs, gradient = given
    leaves = [x.clone().requires_grad_() for x in inputs]
    row_T = np.repeat(np.arange(len(lengths) + 1), (1, *lengths))
    seen_TT = torch.from_numpy(np.tril(row_T[:, None] == row_T)).to(gradient.device)
    q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, 1, 0)).transpose(0, 1) for x in leaves)
    k, v = (x.repeat_interleave(len(q) // len(k), 0) for x in (k, v))
    scores_HTT = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen_TT, -torch.inf)
    output = (scores_HTT.softmax(-1) @ v).transpose(0, 1)[1:]
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def _by_row(given: list[Tensor], lengths: tuple[int, ...]) -> list[Tensor]:
    """Return the same through PyTorch's own, row by row."""
    *inputs, gradient = given
    leaves = [x.clone().requires_grad_() for x in inputs]
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    outputs = []
    for start, end in pairwise(starts):
        q, k, v = (x[start:end].transpose(0, 1).unsqueeze(0) for x in leaves)
        row = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        outputs.append(row[0].transpose(0, 1))
    output = torch.cat(outputs)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def _ours(given: list[Tensor], lengths: tuple[int, ...]) -> list[Tensor]:
    """The same through the engine's."""
    *inputs, gradient = given
    leaves = [x.clone().requires_grad_() for x in inputs]
    borders = Borders.of(lengths, lambda array: torch.from_numpy(array).to(gradient.device))
    q, k, v = leaves
    output = attention(q, k, v, borders, scale=gradient.shape[-1] ** -0.5)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def out_of_memory(device: Device) -> Iterator[Figure]:
    """A step for which the card has not the room, against the same with micro-batches that fit."""
    here = Place(engine="cuda", device=device)
    rows = made_rows("long", 64, np.random.default_rng(0), vocabulary=2000)
    small = opened(here, micro_batch_tokens=2048)
    expected = small.step(rows, lr=RATE, tokens=rows.supervised)
    del small
    backend = opened(here, micro_batch_tokens=rows.tokens)
    backend.warm_up(rows.take([0]))
    release(device)
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + ROOM) / whole)
    found = backend.step(rows, lr=RATE, tokens=rows.supervised)
    yield check(
        f"micro-batch after memory ran out, to the {rows.tokens:,} tokens before",
        backend.micro_batch_tokens / rows.tokens,
        at_most=0.5,
    )
    for name, a, b in (
        ("loss", found.loss_sum, expected.loss_sum),
        ("gradient's norm", found.grad_norm, expected.grad_norm),
    ):
        said = f"{name} of that step against micro-batches that fit, relative"
        yield check(said, relative(a, b), at_most=1e-4)
    again = backend.step(rows.take([0]), lr=RATE, tokens=rows.take([0]).supervised)
    said = "steps after it whose loss is zero or not finite"
    yield check(said, float(not (again.finite and again.loss_sum)), at_most=0)


def one_row_at_a_time(device: Device) -> Iterator[Figure]:
    """Long and short rows of random tokens, packed against alone, in bfloat16 on a card."""
    here = Place(engine="cuda", device=device)
    dtype, bound = ("bfloat16", 0.02) if device == "gpu" else ("float32", 5e-5)
    generator = np.random.default_rng(0)
    for workload in ("code-alpaca", "movielens"):
        rows = made_rows(workload, 16, generator, vocabulary=2000)
        packed = opened(here, dtype=dtype).score(rows)
        alone = opened(here, dtype=dtype, micro_batch_tokens=ONE_ROW).score(rows)
        said = f"losses of {workload}-like rows packed against alone, {dtype}, relative"
        yield check(said, rows_apart(packed, alone), at_most=bound)
