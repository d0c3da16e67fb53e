"""Every command on the cards that it is for: real host code, results of zero."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fake_gpu.conftest import CARDS, Run

TRAIN = (
    *("train", "--backend", "cuda", "--device", "gpu"),
    *("--steps", "3", "--set", "data.limit=30", "--set", "train.save_every=2"),
)
RUN = ("--output", "run")

SETTINGS = [
    ("T4", ()),
    ("T4", ("--set", "model.dtype=float16")),
    ("T4", ("--quantization", "4bit")),
    ("A800", ()),
    ("A800", ("--set", "train.micro_batch_tokens=100", "--set", "lora.dropout=0.05")),
    ("RTX 3090", ()),
    ("RTX 3090", ("--set", "model.dtype=float32")),
    ("RTX 3090", ("--set", "model.dtype=float16")),
    ("RTX 3090", ("--quantization", "4bit")),
    ("RTX 3090", ("--quantization", "8bit")),
    ("RTX 3090", ("--set", "train.gradient_checkpointing=true", "--set", "lora.dropout=0.05")),
    ("RTX 3090", ("--set", "train.micro_batch_tokens=1")),
    ("H200", ()),
    ("H200", ("--set", "model.dtype=float32", "--set", "lora.dropout=0.05")),
    ("H200", ("--quantization", "4bit", "--set", "train.gradient_checkpointing=true")),
]


@pytest.mark.parametrize(("card", "settings"), SETTINGS)
def test_a_job_trains_on_a_card(card: str, settings: tuple[str, ...], qwen_local: Run) -> None:
    ended = qwen_local(CARDS[card], *TRAIN, *RUN, *settings)
    assert (ended.code, ended.out) == (0, "run/adapter\n"), ended.err
    assert "backend: cuda on the gpu" in ended.err
    assert "step 3/3" in ended.err
    assert "Traceback" not in ended.err
    assert "[W" not in ended.err, "a library warns"


def test_a_model_of_a_published_shape_trains(model: Path, qwen_local: Run) -> None:
    data = ("--model", model, "--data", "qwen-local/sample")
    ended = qwen_local(CARDS["RTX 3090"], *TRAIN, *RUN, *data)
    assert (ended.code, ended.out) == (0, "run/adapter\n"), ended.err


def test_a_run_resumes(qwen_local: Run) -> None:
    card = CARDS["RTX 3090"]
    assert qwen_local(card, *TRAIN, *RUN).code == 0
    ended = qwen_local(card, *TRAIN, "--resume=run", "--steps", "5")
    assert ended.code == 0, ended.err
    assert "step 5/5" in ended.err
    assert "step 3/5" not in ended.err


def test_an_adapter_answers(qwen_local: Run) -> None:
    """Every logit is 0, so every token is the first."""
    card = CARDS["H200"]
    assert qwen_local(card, *TRAIN, *RUN).code == 0
    where = ("--adapter", "run", "--backend", "cuda", "--device", "gpu")
    short = ("--max-tokens", "4")
    ended = qwen_local(card, "generate", *where, *short, "--prompt", "What color is the sky?")
    assert ended.code == 0, ended.err
    assert ended.out
    ended = qwen_local(card, "chat", *where, *short, stdin="What color is the sky?\n")
    assert ended.code == 0, ended.err
    assert ended.out


def test_fuse_refuses_a_model_whose_answers_are_zeros(qwen_local: Run) -> None:
    card = CARDS["RTX 3090"]
    assert qwen_local(card, *TRAIN, *RUN).code == 0
    ended = qwen_local(card, "fuse", "--adapter", "run", "--output", "fused", "--device", "gpu")
    assert ended.code == 1, ended
    assert "Traceback" not in ended.err
    assert "the logits of the merge differ by " in ended.err


NAMES = {
    "T4": ("Tesla T4", "float32"),
    "RTX 3090": ("NVIDIA GeForce RTX 3090", "bfloat16"),
    "A800": ("NVIDIA A800-SXM4-80GB", "bfloat16"),
    "H200": ("NVIDIA H200", "bfloat16"),
}


@pytest.mark.parametrize("name", CARDS)
def test_doctor_finds_the_card(name: str, qwen_local: Run) -> None:
    ended = qwen_local(CARDS[name], "doctor", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["auto"] == {"backend": "cuda", "device": "gpu"}
    assert (found["machine"]["gpu"], found["dtype"]) == NAMES[name]
    assert found["machine"]["gpu_bytes"] == found["machine"]["gpu_free_bytes"]
    assert found["hints"] == []


def test_plan_counts_the_memory_of_the_card(qwen_local: Run) -> None:
    ended = qwen_local(CARDS["RTX 3090"], "plan", "--json", "--backend", "cuda", "--device", "gpu")
    assert ended.code == 0, ended.err
    memory = json.loads(ended.out)["memory"]
    assert (memory["device"], memory["available"]) == ("gpu", 24_000_000_000)
    assert memory["fits"]


def test_on_capability_9_attention_is_not_cudnns(on_card: Run) -> None:
    """It would build a plan of half a second for every new length."""
    ended = on_card(CARDS["H200"], "tests.fake_gpu.sdpa_choice")
    assert (ended.code, ended.out) == (0, "CUDNN_ATTENTION FLASH_ATTENTION\n"), ended.err
