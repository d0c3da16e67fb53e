"""Computing a model block by block, so that only one block's weights are in memory at a time.

Each block is written to a temporary folder as a complete model with a single block. An engine then
loads, quantizes and computes it with the same code as a full model. The parts outside the blocks
(embedding, last norm, head) are read in chunks and computed here.

Shapes: T = tokens of a sequence, D = hidden size, N = compared positions, V = vocabulary.
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

from qwen_local.adapters.lora import Adapter, arrays_of_block
from qwen_local.backends.base import Arrays, Backend
from qwen_local.backends.weights import Weights
from qwen_local.export.merge import ReadTensor
from qwen_local.files import write_arrays, write_json
from qwen_local.job.schema import LoraSpec, Quantization
from qwen_local.models.architecture import EMBEDDING, HEAD, NORM, block_prefix
from qwen_local.models.config import engine_config
from qwen_local.models.source import ModelFiles
from qwen_local.resolve.open import open_model
from qwen_local.resolve.resolve import Resolved

VOCABULARY_CHUNK = 8192
"""Rows of the embedding or the head that are in memory at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightSource:
    """A model's weights, and how an engine loads them."""

    model: ModelFiles
    """Supplies config and architecture."""
    read: ReadTensor
    """Reads the embedding, the last norm and the head."""
    write_block: Callable[[Path, int], None]
    """Writes one block as a model with a single block: see `Weights.cut`."""
    quantized: bool
    """True if written blocks are quantized as in the model's files."""
    adapter: Adapter | None = None
    """Supplies the LoRA settings of the engine; variants supply the arrays."""
    quantization: Quantization = "none"
    """Quantization of the blocks' linear layers on loading."""

    @classmethod
    def from_files(
        cls,
        model: ModelFiles,
        weights: Weights,
        adapter: Adapter | None = None,
        quantization: Quantization = "none",
    ) -> WeightSource:
        """Use the weights of a model's files, as an engine loads them."""
        quantized = model.architecture.stored is not None
        read = tensor_reader(weights)
        return cls(model, read, weights.cut, quantized, adapter, quantization)

    @classmethod
    def from_arrays(
        cls, model: ModelFiles, read: ReadTensor, tensor: Callable[[str], np.ndarray]
    ) -> WeightSource:
        """Use weights that are computed as float32 arrays.

        Args:
            model: whose tensors they are.
            read: reads the embedding, the last norm and the head.
            tensor: name of a tensor in a block -> float32.
        """

        def write_block(path: Path, number: int) -> None:
            ones = np.ones(model.architecture.hidden, np.float32)
            arrays = {EMBEDDING: ones[None], NORM: ones}
            for name in model.architecture.blocks[number].tensors:
                arrays[block_prefix(0) + name] = tensor(block_prefix(number) + name)
            write_arrays(path, arrays, made_for="pt")

        return cls(model, read, write_block, quantized=False)


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One version of the model to compare: weights, and an adapter's arrays on them."""

    source: WeightSource
    arrays: Arrays = field(default_factory=dict)


def tensor_reader(weights: Weights) -> ReadTensor:
    """Return a function that reads the tensors of a model's files, dequantized."""
    return lambda name, rows: weights.read(name, rows=rows)


def run_blocks(
    variants: Mapping[str, Variant],
    sequences: Sequence[np.ndarray],
    resolved: Resolved,
    scratch: Path,
) -> dict[str, list[np.ndarray]]:
    """Compute each variant's hidden states after its last block, before the last norm.

    Args:
        variants: by name. Neighbors with the same source share an engine.
        sequences: tokens, int [T] each.
        resolved: the base model's engine.
        scratch: a folder for one block at a time.

    Returns:
        float32 [T, D] of each sequence, by the name of the variant.
    """
    hidden = {name: embed(variant.source.read, sequences) for name, variant in variants.items()}
    layers = next(iter(variants.values())).source.model.architecture.layers
    gc.freeze()  # the collection after each block need not look through older objects
    try:
        for number in range(layers):
            for source, names in _by_source(variants):
                with _engine(source, number, resolved, scratch) as engine:
                    for name in names:
                        if source.adapter is not None:
                            engine.load_adapter(arrays_of_block(variants[name].arrays, number))
                        hidden[name] = engine.through_blocks(hidden[name])
    finally:
        gc.unfreeze()
    return hidden


def _by_source(variants: Mapping[str, Variant]) -> list[tuple[WeightSource, list[str]]]:
    found: list[tuple[WeightSource, list[str]]] = []
    for name, variant in variants.items():
        if found and found[-1][0] is variant.source:
            found[-1][1].append(name)
        else:
            found.append((variant.source, [name]))
    return found


@contextmanager
def _engine(
    source: WeightSource, number: int, resolved: Resolved, scratch: Path
) -> Iterator[Backend]:
    """Open an engine with one block of a source, in float32."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    engine: Backend | None = None
    try:
        source.write_block(folder / "model.safetensors", number)
        adapter = source.adapter
        block = resolved.on(_one_block_model(source, number, folder))
        setup = block.setup(
            lora=None if adapter is None else _in_all_blocks(adapter.lora),
            dora=adapter is not None and adapter.dora,
            dtype="float32",
            quantization=source.quantization,
        )
        engine = open_model(block, setup)
        yield engine
    finally:
        del engine
        gc.collect()  # libraries keep models in reference cycles
        shutil.rmtree(folder)


def _in_all_blocks(lora: LoraSpec) -> LoraSpec:
    return lora.model_copy(update={"layers": "all", "dropout": 0.0})


def _one_block_model(source: WeightSource, number: int, folder: Path) -> ModelFiles:
    """Describe the model with a single block whose weights are in a folder."""
    model = source.model
    config: dict[str, Any] = {
        **engine_config(model.config),
        "num_hidden_layers": 1,
        "vocab_size": 1,
        "tie_word_embeddings": True,
    }
    if source.quantized:
        config |= {k: v for k, v in model.config.items() if k.startswith("quantization")}
    write_json(folder / "config.json", config)
    architecture = replace(
        model.architecture,
        blocks=model.architecture.blocks[number : number + 1],
        vocabulary=1,
        tied=True,
        stored=model.architecture.stored if source.quantized else None,
    )
    return replace(model, folder=folder, config=config, architecture=architecture)


def embed(read: ReadTensor, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Look up the embeddings of tokens: float32 [T, D] of each sequence."""
    ids = np.unique(np.concatenate(sequences))
    rows = np.concatenate(
        [
            read(EMBEDDING, slice(start, start + VOCABULARY_CHUNK))[chosen - start]
            for start in np.unique(ids // VOCABULARY_CHUNK) * VOCABULARY_CHUNK
            if len(chosen := ids[(ids >= start) & (ids < start + VOCABULARY_CHUNK)])
        ]
    )
    return [rows[np.searchsorted(ids, sequence)] for sequence in sequences]


def last_norm(source: WeightSource, hidden_ND: np.ndarray) -> np.ndarray:
    """Apply the last norm to hidden states: float32 [N, D]."""
    epsilon = np.float32(engine_config(source.model.config)["rms_norm_eps"])
    squares_N1 = np.square(hidden_ND).mean(axis=1, keepdims=True)
    scaled: np.ndarray = hidden_ND / np.sqrt(squares_N1 + epsilon)
    return scaled * source.read(NORM, None)


def head_chunks(source: WeightSource) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the head in chunks: (first token, float32 [at most VOCABULARY_CHUNK, D])."""
    name = EMBEDDING if source.model.architecture.tied else HEAD
    for start in range(0, source.model.architecture.vocabulary, VOCABULARY_CHUNK):
        yield start, source.read(name, slice(start, start + VOCABULARY_CHUNK))
