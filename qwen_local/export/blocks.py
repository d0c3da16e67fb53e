"""A model computed block by block: only one block's weights are in memory at a time.

A block is given to an engine as a whole model of its own, with one block, so that it is loaded,
quantized and computed by the code that computes the model. What stands around the blocks, the
embedding, the last norm and the head, is read in pieces and computed here.

Shapes: T = tokens of a sequence, D = hidden size, N = positions that are looked at, V = vocabulary.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qwen_local.adapters.lora import Adapter, lora_name
from qwen_local.backends.base import Arrays, Backend, Setup
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from qwen_local.backends.weights import Weights
from qwen_local.export.merge import Read
from qwen_local.files import write_arrays, write_json
from qwen_local.job.schema import LoraSpec, Quantization
from qwen_local.models.config import engine_config
from qwen_local.models.source import ModelFiles
from qwen_local.models.tensor_check import EMBEDDING, HEAD, NORM

PIECE = 8192
"""Rows of the embedding or the head that are in memory at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Weights, and what an engine makes of them."""

    model: ModelFiles
    """Whose figures they are of."""
    read: Read
    """The embedding, the last norm and the head."""
    cut: Callable[[Path, int], None]
    """Writes a block as a model of one block: see `Weights.cut`."""
    quantized: bool
    """Whether what it writes has the codes of the model's files."""
    adapter: Adapter | None = None
    """Settings of the adapter that an engine is opened for."""
    quantization: Quantization = "none"
    """What the engine holds the blocks' linear layers in."""


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """One way to compute the model: weights, and an adapter's arrays on them."""

    source: Source
    arrays: Arrays = field(default_factory=dict)


def of_files(
    model: ModelFiles,
    weights: Weights,
    adapter: Adapter | None = None,
    quantization: Quantization = "none",
) -> Source:
    """The weights of a model's files, as an engine loads them."""
    quantized = model.architecture.stored is not None
    return Source(model, reader(weights), weights.cut, quantized, adapter, quantization)


def reader(weights: Weights) -> Read:
    """The tensors of a model's files, as the floats that they hold or stand for."""
    return lambda name, rows: weights.read(name, rows=rows)


def of_arrays(model: ModelFiles, read: Read, block: Callable[[int], Arrays]) -> Source:
    """Weights as float32 arrays.

    Args:
        model: whose figures they are of.
        read: the embedding, the last norm and the head.
        block: its number -> its arrays, named as in block 0.
    """

    def cut(path: Path, number: int) -> None:
        ones = np.ones(model.architecture.hidden, np.float32)
        write_arrays(path, {**block(number), EMBEDDING: ones[None], NORM: ones}, made_for="pt")

    return Source(model, read, cut, quantized=False)


def in_block_0(name: str) -> str:
    """How a tensor of a block is called in a model that has this block alone.

    >>> in_block_0("model.layers.17.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    _, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"model.layers.0.{rest}"


def through_all_blocks(
    voices: Mapping[str, Voice], sequences: Sequence[np.ndarray], choice: Choice, scratch: Path
) -> dict[str, list[np.ndarray]]:
    """What each voice has behind its last block, before the last norm.

    Args:
        voices: by name; those of one source should follow each other, and share an engine then.
        sequences: tokens, int [T] each.
        choice: the engine.
        scratch: a folder for one block at a time.

    Returns:
        float32 [T, D] of each sequence, by the name of the voice.
    """
    hidden = {name: embedded(voice.source.read, sequences) for name, voice in voices.items()}
    layers = next(iter(voices.values())).source.model.architecture.layers
    gc.freeze()  # what is there already need not be looked through after every block
    try:
        for number in range(layers):
            for source, names in _by_source(voices):
                with _engine(source, number, choice, scratch) as engine:
                    for name in names:
                        if source.adapter is not None:
                            engine.load_adapter(_arrays_of_block(voices[name].arrays, number))
                        hidden[name] = engine.through_blocks(hidden[name])
    finally:
        gc.unfreeze()
    return hidden


def _by_source(voices: Mapping[str, Voice]) -> list[tuple[Source, list[str]]]:
    found: list[tuple[Source, list[str]]] = []
    for name, voice in voices.items():
        if found and found[-1][0] is voice.source:
            found[-1][1].append(name)
        else:
            found.append((voice.source, [name]))
    return found


def _arrays_of_block(arrays: Arrays, number: int) -> dict[str, np.ndarray]:
    prefix = lora_name(number, "q_proj", "A").partition("self_attn")[0]
    first = lora_name(0, "q_proj", "A").partition("self_attn")[0]
    return {
        first + name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


@contextmanager
def _engine(source: Source, number: int, choice: Choice, scratch: Path) -> Iterator[Backend]:
    """An engine with one block of a source, in float32."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    engine: Backend | None = None
    try:
        source.cut(folder / "model.safetensors", number)
        adapter = source.adapter
        engine = open_backend(
            choice,
            Setup(
                model=_one_block(source, folder),
                lora=None if adapter is None else _in_all_blocks(adapter.lora),
                dora=adapter is not None and adapter.dora,
                device=choice.device,
                dtype="float32",
                quantization=source.quantization,
            ),
        )
        yield engine
    finally:
        del engine
        gc.collect()  # what a library keeps in a cycle
        shutil.rmtree(folder)


def _in_all_blocks(lora: LoraSpec) -> LoraSpec:
    return lora.model_copy(update={"layers": "all", "dropout": 0.0})


def _one_block(source: Source, folder: Path) -> ModelFiles:
    """The model of one block in a folder, whose weights are there."""
    model = source.model
    config: dict[str, Any] = {
        **engine_config(model.config),
        "num_hidden_layers": 1,
        "vocab_size": 1,
        "tie_word_embeddings": True,
    }
    if source.quantized:
        kept = {key: value for key, value in model.config.items() if key.startswith("quantization")}
        config |= kept
    write_json(folder / "config.json", config)
    stored = model.architecture.stored if source.quantized else None
    one = replace(model.architecture, layers=1, vocabulary=1, tied=True, stored=stored)
    return replace(model, folder=folder, config=config, architecture=one)


def embedded(read: Read, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The rows of the embedding for tokens: float32 [T, D] of each sequence."""
    ids = np.unique(np.concatenate(sequences))
    rows = np.concatenate(
        [
            read(EMBEDDING, slice(start, start + PIECE))[chosen - start]
            for start in np.unique(ids // PIECE) * PIECE
            if len(chosen := ids[(ids >= start) & (ids < start + PIECE)])
        ]
    )
    return [rows[np.searchsorted(ids, sequence)] for sequence in sequences]


def normed(source: Source, hidden_ND: np.ndarray) -> np.ndarray:
    """Hidden states after the last norm, float32 [N, D]."""
    epsilon = np.float32(engine_config(source.model.config)["rms_norm_eps"])
    squares_N1 = np.square(hidden_ND).mean(axis=1, keepdims=True)
    scaled: np.ndarray = hidden_ND / np.sqrt(squares_N1 + epsilon)
    return scaled * source.read(NORM, None)


def head_pieces(source: Source) -> Iterator[tuple[int, np.ndarray]]:
    """(first token, float32 [at most PIECE, D]) of the head, piece by piece."""
    name = EMBEDDING if source.model.architecture.tied else HEAD
    for start in range(0, source.model.architecture.vocabulary, PIECE):
        yield start, source.read(name, slice(start, start + PIECE))
