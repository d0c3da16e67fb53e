"""Checkpoints of version 0.1.0 load, and theirs are what this version writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from qwen_local.adapters.lora import Adapter
from qwen_local.backends.base import AdapterState
from qwen_local.embedded import TINY_MODEL
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import fetch, find_model
from qwen_local.runs.state import (
    PROGRESS,
    Checkpoint,
    Execution,
    Identity,
    Patience,
    TrainState,
    from_files,
    to_files,
)

OLD = Path(__file__).parents[1] / "golden/old_run/checkpoints/step-000004/progress.json"
"""Written by commit d8fa3b6."""
NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def new_files() -> dict[str, bytes]:
    """Files of a checkpoint with one number."""
    arrays = {NAME: np.ones((1, 2), np.float32)}
    blocks = fetch(find_model(TINY_MODEL)).architecture.blocks
    lora = LoraSpec(rank=1, targets=("q_proj",))
    adapter = Adapter(base="m", lora=lora, blocks=blocks, arrays=arrays)
    identity = Identity(job={}, rows="r", eval_rows=None, sources=(), base="b", base_commit=None)
    execution = Execution(
        backend="cuda",
        device="cpu",
        dtype="float32",
        available=1,
        micro_batch_tokens=64,
        gradient_checkpointing=False,
        cuda_graphs=False,
    )
    checkpoint = Checkpoint(
        adapter_state=AdapterState(arrays, arrays, arrays, 0),
        state=TrainState(),
        identity=identity,
        execution=execution,
    )
    return to_files(checkpoint, adapter)


def test_progress_of_an_old_checkpoint_loads() -> None:
    found = from_files({**new_files(), PROGRESS: OLD.read_bytes()})
    assert (found.state.step, found.state.best_step, found.adapter_state.steps) == (4, 4, 4)
    assert found.state.patience == Patience(reference=0.9466840373632631)
    assert found.state.health["best_eval_step"] == 4
    assert found.identity.job["train"]["steps"] == 4
    assert (found.execution.backend, found.execution.micro_batch_tokens) == ("cuda", 1024)


def test_progress_is_written_with_the_keys_of_an_old_checkpoint_in_their_order() -> None:
    old, new = json.loads(OLD.read_bytes()), json.loads(new_files()[PROGRESS])
    assert list(new) == list(old)
    for section in ("patience", "identity"):
        assert list(new[section]) == list(old[section])
    assert list(new["execution"]) == [*old["execution"], "cuda_graphs"]
