"""The first cosine of a process, taken alone.

On a CPU, PyTorch's `cos`, `sin`, `exp`, `log`, `erf` and others are those of Intel's vector
mathematics (VML, in MKL), each thread computing its part. Where the very first of these calls comes
from several threads at once, now and then one of them computes with half the digits: an error of
1.5e-4 in the rotation of every head, in the first forward pass of about one process in thousands,
or one in four where memory is tight (`python -m benchmarks.vector_math`). After one call from one
thread it never does.
"""

from __future__ import annotations

import torch

FUNCTIONS = (torch.cos, torch.sin, torch.exp, torch.log, torch.log1p)
"""Functions that a Qwen model and its loss call."""


def call_once() -> None:
    """Call each of them from one thread, before several threads do."""
    one = torch.ones(1)
    for function in FUNCTIONS:
        function(one)
