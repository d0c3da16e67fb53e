"""How fast answers are generated in the dtype that a user gets: together, and in a conversation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.agreement import Place
from benchmarks.parts import Device, Figure, check
from benchmarks.peers.models import make_model
from benchmarks.roofline import DTYPES
from qwen_local.backends.base import Backend, Sampling, Setup
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import fetch, find_model

MODEL: dict[Device, str] = {"gpu": "Qwen3-0.6B", "cpu": "tiny"}
PROMPTS, LENGTHS = 8, (20, 160)
"""How many prompts, and between which lengths they are spread."""
ANSWER: dict[Device, int] = {"gpu": 64, "cpu": 16}
"""Tokens of an answer."""

Answers = Callable[[int], Sequence[Sequence[int]]]
"""Returns answers of at most so many tokens each."""


def answer_speed(place: Place, folder: Path) -> Iterator[Figure]:
    """Measure greedy tokens per second on random weights with an adapter."""
    device = place.device
    model = fetch(find_model(str(make_model(MODEL[device], DTYPES[device], folder))))
    setup = Setup(
        model=model,
        lora=LoraSpec(rank=16, alpha=32, dropout=0.0),
        device=device,
        dtype=DTYPES[device],
    )
    backend = open_backend(Choice(place.engine, device, "a benchmark"), setup)
    generator = np.random.default_rng(0)
    spread = np.linspace(*LENGTHS, PROMPTS, dtype=int)
    prompts = [generator.integers(2, 2000, length).tolist() for length in spread]
    stops = _rare(model.architecture.vocabulary)
    ways: dict[str, Answers] = {
        f"{PROMPTS} prompts together": lambda most: [
            answer.ids for answer in backend.generate(prompts, max_tokens=most, stop_ids=stops)
        ],
        "one conversation": lambda most: [_reply(backend, prompts[-1], most, stops)],
    }
    for way, answers in ways.items():
        answers(2)  # what is loaded or compiled first
        start = time.perf_counter()
        found = answers(ANSWER[device])
        seconds = time.perf_counter() - start
        tokens = sum(len(ids) for ids in found)
        yield {
            "answers": way,
            "model": MODEL[device],
            "dtype": DTYPES[device],
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
            "milliseconds_of_a_token": round(1000 * seconds * len(found) / max(tokens, 1), 2),
        }
        said = f"answers without a token, or of token 0 alone, {way}"
        yield check(said, sum(not any(ids) for ids in found), at_most=0)


def _rare(vocabulary: int) -> tuple[int, ...]:
    """Return a stop token that no prompt has: random weights hardly ever give it."""
    return (vocabulary - 1,)


def _reply(backend: Backend, prompt: Sequence[int], most: int, stops: Sequence[int]) -> list[int]:
    """Generate one answer in a session of its own."""
    answer = backend.session().reply(
        prompt, max_tokens=most, stop_ids=stops, sampling=Sampling(), emit=lambda token: True
    )
    return list(answer.ids)
