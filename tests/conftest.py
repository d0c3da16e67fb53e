"""Fixtures that several tests share: small random models of each family, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen_local.models.source import ModelFiles, fetch, find_model
from qwen_local.rows import IGNORE, Rows

VOCABULARY = 320

MakeModel = Callable[[str, bool], ModelFiles]


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """(model_type, tied) -> a saved random model, made once."""
    made: dict[tuple[str, bool], ModelFiles] = {}

    def make(model_type: str, tied: bool) -> ModelFiles:
        if (model_type, tied) not in made:
            folder = tmp_path_factory.mktemp(f"{model_type}-{'tied' if tied else 'untied'}")
            save_random_model(folder, model_type, tied=tied)
            made[model_type, tied] = fetch(find_model(str(folder)))
        return made[model_type, tied]

    return make


def save_random_model(folder: Path, model_type: str, *, tied: bool) -> None:
    """A model whose widths all differ, so that a transposed matrix cannot go unseen."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = {
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }[model_type](
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16 if model_type == "qwen2" else 24,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)


def random_rows(count: int, *, seed: int = 0, longest: int = 24) -> Rows:
    """Rows of many lengths with a supervised stretch each, as conversations have."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        length = int(generator.integers(6, longest + 1))
        ids = generator.integers(2, VOCABULARY, length + 1)
        start = int(generator.integers(1, length - 2))
        targets = np.where(np.arange(length) >= start, ids[1:], IGNORE)
        pairs.append((ids[:-1], targets))
    return Rows.from_pairs(pairs)
