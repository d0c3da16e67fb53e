"""Passes over micro-batches as CUDA graphs: one launch instead of thousands.

Where a micro-batch is small, a card waits for the host, which launches some 100 kernels a block.
A graph is a pass that was recorded once, for one shape of its inputs, and is launched as a whole.
The arrays that it reads and writes keep their addresses: inputs are copied into its own, adapters
are read where the optimizer updates them, and gradients are added to `grad`.

A shape is computed launch by launch until it comes a second time, and is recorded then. The first
graph of all is compared with the pass that it recorded before any is used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen_local.backends.cuda.inputs import Inputs, Shape
from qwen_local.errors import BackendError

log = logging.getLogger("qwen_local")

MOST_GRAPHS = 64
"""Graphs that are kept; each takes a few megabytes beside the memory that all of them share."""

TOLERANCE = 0.05
"""Allowed difference between a graph and the pass that it recorded, of their gradients and losses,
relative to those of the pass. Attention sums its gradients in another order each time."""

Work = Callable[[Inputs], Tensor]
"""A pass forward and backward: adds to the gradients and returns the loss, a float32 scalar."""


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    """A recorded pass, with the tensors that it reads and the one that it writes its loss to."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    loss: Tensor

    def replay(self, inputs: Inputs) -> Tensor:
        """Launch the pass on other inputs of its shape; return its loss."""
        for own, given in zip(self.inputs.tensors, inputs.tensors, strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.loss


class Graphs:
    """Computes micro-batches, as graphs where their shape has come before."""

    def __init__(self, work: Work, gradients: Callable[[], list[Tensor]]) -> None:
        """Start without a graph.

        Args:
            work: the pass.
            gradients: returns every array that the pass adds to. They stay where they are until
                `clear`.
        """
        self._work = work
        self._gradients = gradients
        self._seen: set[Shape] = set()
        self._graphs: dict[Shape, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        self._checked = False
        self.on = True
        """False once a graph was not right, or had no room."""

    def clear(self) -> None:
        """Forget every graph, and the arrays that they read and write."""
        self._graphs.clear()
        self._seen.clear()
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, inputs: Inputs, seed: int) -> Tensor:
        """Compute a micro-batch.

        Args:
            inputs: of one of few shapes.
            seed: of its dropout.

        Returns:
            The loss, float32; overwritten by the next micro-batch.

        Raises:
            BackendError: recording failed in a way that leaves PyTorch unusable.
        """
        if (graph := self._graphs.get(inputs.shape)) is not None:
            return graph.replay(inputs)
        known = inputs.shape in self._seen
        self._seen.add(inputs.shape)
        if not (known and self.on and len(self._graphs) < MOST_GRAPHS):
            return self._work(inputs)
        before = None if self._checked else [g.clone() for g in self._gradients()]
        loss = self._work(inputs)
        if (graph := self._record(inputs)) is None:
            return loss
        if before is None or self._agrees(graph, loss, before, inputs, seed):
            self._graphs[inputs.shape] = graph
        return loss

    def _record(self, inputs: Inputs) -> _Graph | None:
        """Record the pass; None if there is no memory for it. Nothing is computed."""
        own, graph = inputs.copy(), torch.cuda.CUDAGraph()
        loss, fault = None, None
        # PyTorch records no work of the default stream, on which other work may be waiting.
        torch.cuda.synchronize()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Other threads of the process may use the card.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                loss = self._work(own)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                fault = error
            try:
                graph.capture_end()
            except RuntimeError as error:  # its allocator and generator keep waiting for the end
                raise BackendError.at(
                    "train.cuda_graphs",
                    f"recording a pass failed: {_first_line(fault or error)}",
                    "set it to false",
                ) from error
        torch.cuda.current_stream().wait_stream(self._stream)
        if loss is None:
            assert fault is not None
            self._turn_off(f"recording failed: {_first_line(fault)}")
            return None
        return _Graph(graph, own, loss)

    def _agrees(
        self,
        graph: _Graph,
        loss: Tensor,
        before: list[Tensor],
        inputs: Inputs,
        seed: int,
    ) -> bool:
        """Compare the first graph with the pass that it recorded; leave gradients as they are.

        Args:
            graph: not replayed yet.
            loss: of the pass.
            before: the gradients before the pass; overwritten.
            inputs: of the pass.
            seed: of its dropout.
        """
        gradients = self._gradients()
        after = [g.clone() for g in gradients]
        torch._foreach_sub_(before, after)  # minus the gradient of the pass
        eager = torch.nn.utils.get_total_norm(before)
        torch._foreach_zero_(gradients)
        torch.manual_seed(seed)
        replayed = graph.replay(inputs)
        torch._foreach_add_(before, gradients)
        error = torch.nn.utils.get_total_norm(before)
        torch._foreach_copy_(gradients, after)
        loss_off = (replayed - loss).abs() - TOLERANCE * loss.abs()
        norm, off, loss_off = torch.stack([eager, error, loss_off]).tolist()
        if not math.isfinite(norm):  # compared with the next one instead
            return False
        self._checked = True
        if off <= TOLERANCE * norm and loss_off <= 0:
            return True
        self._turn_off(f"gradients differ by {off:.2g}, of a norm of {norm:.2g}")
        return False

    def _turn_off(self, reason: str) -> None:
        self.on = False
        self.clear()
        log.warning("CUDA graphs are off for this process: %s", reason)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
