"""Cards that are too small, shared with others, or broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fake_gpu.conftest import CARDS, Card, Run

STEPS = ("--steps", "2", "--set", "data.limit=40", "--set", "train.batch_size=32")
KEPT = ("--set", "train.micro_batch_tokens=8192", "--set", "train.gradient_checkpointing=false")
TRAIN = ("train", "--backend", "cuda", "--device", "gpu", "--output", "run")


def of(model: Path) -> tuple[str, ...]:
    return "--model", str(model), "--data", "qwen-local/sample"


@pytest.mark.parametrize(("memory", "tokens"), [(3.5e9, 512), (2.3e9, 256), (1.55e9, 64)])
def test_out_of_memory_halves_the_micro_batches(
    memory: float, tokens: int, model: Path, qwen_local: Run
) -> None:
    ended = qwen_local(Card("8.6", memory), *TRAIN, *STEPS, *KEPT, *of(model))
    assert ended.code == 0, ended.err
    assert f"repeated with micro-batches of at most {tokens} tokens" in ended.err
    assert "step 2/2" in ended.err
    assert "[W" not in ended.err, "PyTorch prints its own warnings"


def test_a_row_that_is_too_large_for_the_card_is_one_message(model: Path, qwen_local: Run) -> None:
    ended = qwen_local(Card("8.6", 1.45e9), *TRAIN, *STEPS, *KEPT, *of(model))
    assert ended.code == 5, ended.err
    assert "Traceback" not in ended.err
    message = ended.err.partition("out of memory")[2]
    assert message.startswith(": "), ended.err


@pytest.mark.parametrize("command", ["train", "generate"])
def test_a_model_that_does_not_fit_is_one_message(
    command: str, model: Path, qwen_local: Run
) -> None:
    words = (*TRAIN, *STEPS, *of(model)) if command == "train" else generate(model)
    ended = qwen_local(Card("8.6", 1e9), *words)
    assert ended.code == 5, ended.err
    message = f"out of memory: {model} (1.2 GB in bfloat16) does not fit into the GPU's memory"
    assert message in ended.err
    assert "hint: set --quantization 4bit" in ended.err
    assert "Traceback" not in ended.err


def generate(model: Path) -> tuple[str, ...]:
    where = ("--backend", "cuda", "--device", "gpu")
    return ("generate", "--model", str(model), *where, "--prompt", "Hello", "--max-tokens", "2")


@pytest.mark.parametrize("launches", [100, 1500])
def test_a_run_is_restarted_after_an_illegal_memory_access(
    launches: int, tmp_path: Path, qwen_local: Run
) -> None:
    """No CUDA call of the process works any more. The first fault is before the first step."""
    happened = tmp_path / "happened"
    job = ("--steps", "6", "--set", "data.limit=40", "--set", "train.save_every=1")
    ended = qwen_local(
        CARDS["RTX 3090"],
        *(*TRAIN, *job, "--set", "train.restarts=1"),
        FAKE_GPU_FAULT=f"{launches}:{happened}",
    )
    assert ended.code == 0, ended.err
    assert happened.exists()
    assert "CUDA error: an illegal memory access was encountered" in ended.err
    place = "the start" if launches == 100 else "step "
    message = f"the training process died (internal error): restarting from {place}"
    assert ended.err.count(message) == 1, ended.err
    assert ended.err.count("step 6/6") == 1


def test_plan_warns_where_other_programs_hold_memory(model: Path, qwen_local: Run) -> None:
    words = ("plan", "--json", "--backend", "cuda", "--device", "gpu", *of(model), *KEPT)
    alone = qwen_local(CARDS["RTX 3090"], *words)
    shared = qwen_local(CARDS["RTX 3090"], *words, FAKE_GPU_USED=str(int(22.5e9)))
    assert (alone.code, shared.code) == (0, 0), shared.err
    assert json.loads(alone.out)["memory_warning"] is None
    warning = json.loads(shared.out)["memory_warning"]
    assert warning.startswith("only 1.50 GB are free now: other programs hold the rest")
