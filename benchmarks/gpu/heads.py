"""The loss head against others': Liger's, cut cross-entropy and plain logits.

Each computes the summed loss of N hidden states under a frozen head, and the gradient of the hidden
states. Time is the median of several, memory what one needs beyond what is given and kept. Loss and
gradient of ours must agree with float32; how far away the others are is said beside.

Shapes: N = supervised positions, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks.parts import Device, Figure, check, relative, unless_zero
from benchmarks.timing import release, timed
from qwen_local.backends.cuda.constants import HEAD_CHUNK
from qwen_local.backends.cuda.head import SupervisedLoss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden [N, D], weight [V, D], targets [N]) -> the summed loss."""

SIZES: dict[Device, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "gpu": ((1024, 2048, 4096), (512, 2048, 8192), 151_936),
    "cpu": ((64,), (32, 256), 2000),
}
"""D, N and V."""
TARGET = 12.0
"""The logit of each target, beside others around 0: about as likely as all of these together, as in
a trained model. Where no token is likely, cut cross-entropy passes over all of them."""
TIMES = 5
OWN = ("ours", "plain")
"""Heads that must work; an error of another package's is a figure."""
LOSS_WITHIN, GRADIENT_WITHIN = 2e-3, 2e-2
"""Relative to float32: bfloat16 rounds the logits by 0.4 %, which sums average out."""


def loss_heads(device: Device) -> Iterator[Figure]:
    """Compare every head at every size; what is not installed or fails is noted."""
    heads, absent = known_heads(device)
    yield {"heads": sorted(heads), "absent": absent}
    for name, make in heads.items():
        try:
            yield from _one_head(name, make(), device)
        except Exception as error:
            if name in OWN:
                raise
            lines = str(error).strip().splitlines() or [""]
            yield {"head": name, "failed": f"{type(error).__name__}: {lines[-1][:300]}"}


def _one_head(name: str, head: Loss, device: Device) -> Iterator[Figure]:
    """Compare a head with float32 at each hidden size, and measure it at every size."""
    hidden_sizes, counts, vocabulary = SIZES[device]
    place = torch.device("cuda" if device == "gpu" else "cpu")
    for hidden in hidden_sizes:
        torch.manual_seed(hidden)  # the same for every head
        weight = (torch.randn(vocabulary, hidden, device=place) * 0.02).to(_dtype(device))
        for count in counts:
            given = _drawn(weight, count)
            if count == counts[0]:
                yield from _agreement(name, head, given)
            yield {
                "head": name,
                "hidden": hidden,
                "supervised": count,
                **_cost(head, given, device),
            }


def _drawn(weight: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states that lean towards their targets, the weight, the targets."""
    targets = torch.randint(len(weight), (count,), device=weight.device)
    wanted = weight[targets].float()
    lean = TARGET / wanted.square().sum(1, keepdim=True)
    states = torch.randn_like(wanted) + lean * wanted
    return states.to(weight.dtype), weight, targets


def known_heads(device: Device) -> tuple[dict[str, Callable[[], Loss]], list[str]]:
    """Return what makes each head, and the packages that are not installed.

    The others' come last: after an error of a kernel the card may be of no use to this process.
    """
    heads: dict[str, Callable[[], Loss]] = {
        "ours": lambda: _ours(HEAD_CHUNK["gpu" if device == "gpu" else "cpu"]),
        "plain": lambda: _plain,
    }
    absent = []
    for package, make in (("liger_kernel", _liger), ("cut_cross_entropy", _cut)):
        if device == "gpu" and importlib.util.find_spec(package) is not None:
            heads[package] = make
        else:
            absent.append(package)
    return heads, absent


def _ours(chunk: int) -> Loss:
    ours: Any = SupervisedLoss.apply
    return lambda x, w, t: ours(x, w, {"ids": t}, chunk)


def _plain(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = (states @ weight.T).float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def _liger() -> Loss:
    liger: Any = import_module("liger_kernel.transformers")
    loss = liger.LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return lambda x, w, t: loss(w, x, t)


def _cut() -> Loss:
    cut: Any = import_module("cut_cross_entropy")
    return lambda x, w, t: cut.linear_cross_entropy(x, w, t, reduction="sum")


def _dtype(device: Device) -> torch.dtype:
    return torch.bfloat16 if device == "gpu" else torch.float32


def _pass(head: Loss, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(loss, gradient of the hidden states)."""
    states, weight, targets = given
    leaf = states.detach().requires_grad_()
    loss = head(leaf, weight, targets)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def _agreement(name: str, head: Loss, given: tuple[Tensor, Tensor, Tensor]) -> Iterator[Figure]:
    """Compare a head with plain logits in float32."""
    states, weight, targets = given
    loss, gradient = _pass(_plain, (states.float(), weight.float(), targets))
    found, slope = _pass(head, given)
    size = f"{states.shape[1]} wide"
    norms = float(gradient.norm()), float(slope.norm())
    away = float((slope.float() - gradient).norm()) / norms[0] if norms[0] else 0.0
    for what, value, within in (
        (
            f"loss of {name} against float32, {size}",
            relative(float(found), float(loss)),
            LOSS_WITHIN,
        ),
        (f"its gradient of {name}, {size}", unless_zero(away, *norms), GRADIENT_WITHIN),
    ):
        if name == "ours":
            yield check(what, value, at_most=within)
        else:
            yield {"figure": what, "value": value}


def _cost(head: Loss, given: tuple[Tensor, Tensor, Tensor], device: Device) -> dict[str, Any]:
    """Milliseconds and bytes; or that memory does not hold it."""
    try:
        for _ in range(2):
            _pass(head, given)
        release(device)
        before = torch.cuda.memory_allocated() if device == "gpu" else 0
        seconds = [timed(lambda: _pass(head, given), device) for _ in range(TIMES)]
    except torch.OutOfMemoryError:
        release(device)
        return {"out_of_memory": True}
    cost: dict[str, Any] = {"milliseconds": round(1000 * statistics.median(seconds), 3)}
    if device == "gpu":
        cost["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    return cost
