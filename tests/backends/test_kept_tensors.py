"""The estimate of `plan` against what PyTorch keeps for the backward pass."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from qwen_local.backends.base import Setup
from qwen_local.backends.cost import estimate_memory
from qwen_local.backends.cuda.engine import TorchBackend
from qwen_local.backends.cuda.inputs import Inputs
from qwen_local.backends.memory import Workload
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import fetch, find_model
from qwen_local.rows.micro_batch import cut
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import Targets

pytestmark = pytest.mark.slow


def kept_bytes(setup: Setup) -> int:
    """Storage that one forward pass over 2,048 positions saves, parameters not counted."""
    backend = TorchBackend(setup)
    backend._model.train()
    ids = np.arange(256)
    rows = Rows.from_pairs([(ids, Targets.of(ids))] * 8)
    batch = next(cut(rows, budget=setup.micro_batch_tokens, layout=backend.layout))
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backend._hidden(Inputs.of(batch, torch.from_numpy))
    own = {p.untyped_storage().data_ptr() for p in backend._model.parameters()}
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_of_activations_is_what_pytorch_keeps(
    dtype: Literal["float32", "bfloat16"],
    dropout: float,
    targets: Literal["all-linear"] | tuple[str, ...],
) -> None:
    setup = Setup(
        model=fetch(find_model("qwen-local/tiny")),
        lora=LoraSpec(rank=16, dropout=dropout, targets=targets),
        device="cpu",
        dtype=dtype,
        micro_batch_tokens=2048,
    )
    workload = Workload(
        engine="cuda",
        trainable=0,
        lengths_R=np.array([256] * 8),
        eval_tokens=0,
        supervised=1.0,
        batch_size=8,
        steps=1,
        libraries=0,
        available=0,
    )
    estimate = estimate_memory(setup, workload).activations
    # Fewer targets need less than all, which the estimate does not follow: it errs upwards.
    highest = 1.05 if targets == "all-linear" else 1.35
    assert 0.95 <= estimate / kept_bytes(setup) <= highest
