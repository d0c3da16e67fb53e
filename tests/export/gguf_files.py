"""Random models and adapters with a real tokenizer, for the tests of GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from qwen_local.adapters.lora import Adapter, lora_shapes
from qwen_local.embedded import tiny_model_path
from qwen_local.export.gguf_about import About
from qwen_local.job.schema import LoraSpec
from qwen_local.models.architecture import Architecture
from qwen_local.models.families import architecture_of
from qwen_local.models.source import ModelFiles, ModelSource

VOCABULARY = 2051
"""Three more than the tokenizer has."""
BASE = ModelSource(kind="hub", name="Qwen/Qwen3-240K", folder=None, revision=None)
ABOUT = About(base=BASE, title="my run", license="apache-2.0")


def model_files(folder: Path, model_type: str = "qwen3", tied: bool = True) -> ModelFiles:
    """A model without weights, whose widths all differ."""
    config = {
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16 if model_type == "qwen2" else 24,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50_000.0,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_path() / name, folder)
    return ModelFiles(
        name=BASE.name,
        folder=folder,
        commit=None,
        config=config,
        architecture=architecture_of(config),
    )


def random_tensors(architecture: Architecture) -> Iterator[tuple[str, np.ndarray]]:
    """The same at each call."""
    generator = np.random.default_rng(0)
    for name, shape in architecture.weight_shapes().items():
        yield name, generator.normal(0, 0.05, shape).astype(np.float32)


def random_adapter(architecture: Architecture, lora: LoraSpec) -> Adapter:
    generator = np.random.default_rng(1)
    arrays = {
        name: generator.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in lora_shapes(architecture, lora).items()
    }
    return Adapter(BASE.name, lora, architecture.blocks, arrays)


def metadata(path: Path) -> dict[str, Any]:
    """What a file says of itself, by the library's own reader."""
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}


def damaged(content: bytes, *, places: int) -> Iterator[bytes]:
    """A file cut short at as many places, and with as many bytes of its beginning changed."""
    generator = np.random.default_rng(2)
    for length in np.linspace(0, len(content) - 1, places).astype(int):
        yield content[:length]
    for place in generator.integers(0, 1000, places):
        changed = bytearray(content)
        changed[place] ^= int(generator.integers(1, 256))
        yield bytes(changed)
