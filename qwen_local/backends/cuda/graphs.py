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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen_local.backends.cuda.inputs import Inputs, Shape

log = logging.getLogger("qwen_local")

MOST = 64
"""Graphs that are kept; each takes a few megabytes beside the memory that all of them share."""

FAR = 0.05
"""Allowed difference of the gradients of a graph and of the pass that it recorded, relative to the
norm of the latter. Attention sums its gradients in another order each time."""

Work = Callable[[Inputs], Tensor]
"""A pass forward and backward: adds to the gradients and returns the loss, a float32 scalar."""


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    loss: Tensor

    def replay(self, inputs: Inputs) -> Tensor:
        for own, given in zip(self.inputs.tensors, inputs.tensors, strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.loss


class Graphs:
    """Computes micro-batches, as graphs where their shape has come before."""

    def __init__(self, work: Work, gradients: Callable[[], Sequence[Tensor]]) -> None:
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
        """
        if (graph := self._graphs.get(inputs.shape)) is not None:
            return graph.replay(inputs)
        known = inputs.shape in self._seen
        self._seen.add(inputs.shape)
        if not (known and self.on and len(self._graphs) < MOST):
            return self._work(inputs)
        before = None if self._checked else [g.clone() for g in self._gradients()]
        loss = self._work(inputs)
        graph = self._record(inputs)
        if graph is not None and (before is None or self._is_right(graph, inputs, before, seed)):
            self._graphs[inputs.shape] = graph
        return loss

    def _record(self, inputs: Inputs) -> _Graph | None:
        """Record the pass; None if there is no memory for it. Nothing is computed."""
        own, graph = inputs.copy(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                # Other threads of the process may use the card.
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    loss = self._work(own)
                finally:
                    graph.capture_end()
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            self._turn_off(f"recording failed: {str(error).partition(chr(10))[0]}")
            return None
        torch.cuda.current_stream().wait_stream(self._stream)
        return _Graph(graph, own, loss)

    def _is_right(self, graph: _Graph, inputs: Inputs, before: Sequence[Tensor], seed: int) -> bool:
        """Compare the first graph with the pass that it recorded; leave gradients as they are."""
        self._checked = True
        gradients = self._gradients()
        after = [g.clone() for g in gradients]
        wanted = torch._foreach_sub(after, list(before))
        torch.manual_seed(seed)
        graph.replay(inputs)
        found = torch._foreach_sub(list(gradients), after)
        torch._foreach_copy_(list(gradients), after)
        torch._foreach_sub_(found, wanted)
        norms = [torch.nn.utils.get_total_norm(part) for part in (found, wanted)]
        error, norm = torch.stack(norms).tolist()
        if error <= FAR * norm:
            return True
        self._turn_off(f"gradients differ by {error:.2g}, of a norm of {norm:.2g}")
        return False

    def _turn_off(self, reason: str) -> None:
        self.on = False
        self.clear()
        log.warning("CUDA graphs are off for this process: %s", reason)
