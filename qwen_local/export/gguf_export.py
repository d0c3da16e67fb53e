"""GGUF exports: a merged model, alone or with Ollama's Modelfile, and an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from qwen_local.adapters.lora import Adapter
from qwen_local.adapters.prompt import thinking_of
from qwen_local.backends.weights import Weights
from qwen_local.export.blocks import Variant, WeightSource
from qwen_local.export.gguf_about import About, file_name, labels
from qwen_local.export.gguf_adapter import read_adapter, write_adapter
from qwen_local.export.gguf_encoding import (
    Encoding,
    Outtype,
    encoded_bytes,
    encoding_of,
    rounding_bound,
)
from qwen_local.export.gguf_model import write_model
from qwen_local.export.gguf_read import GgufWeights
from qwen_local.export.gguf_vocabulary import read_vocabulary
from qwen_local.export.live import merged_variant
from qwen_local.export.merge import merged_tensors, verify
from qwen_local.export.ollama import modelfile
from qwen_local.export.proof import EXPORT
from qwen_local.inference.sampling_options import sampling_defaults
from qwen_local.models.architecture import Architecture
from qwen_local.models.config import engine_config
from qwen_local.models.licenses import license_in, license_of
from qwen_local.resolve.resolve import Resolved

OLLAMA_CONTEXT = 8192
"""Context length in Ollama, which allocates memory for all of it. Longer if the adapter was trained
on longer rows, shorter if the model is limited to less."""


def write_gguf(
    new: Path,
    opened: Resolved,
    weights: Weights,
    outtype: Outtype,
    about: About,
    *,
    template: bool,
) -> dict[str, Variant]:
    """Write the merged model, with or without its chat template.

    Returns:
        The variants of the written file and of the merge that it should hold.
    """
    base = opened.model
    path = new / file_name_of(opened, about, outtype)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        return merged_tensors(base.architecture, opened.known_adapter, weights, opened.quantization)

    write_model(
        path,
        files=base,
        tensors=tensors(),
        outtype=outtype,
        about=about,
        chat_template=template,
    )
    written = GgufWeights(path, base.architecture)
    vocabulary = read_vocabulary(base.folder, base.architecture.vocabulary)
    written.check_settings(engine_config(base.config), vocabulary)
    verify(
        tensors(),
        written.read,
        lambda array: rounding_bound(array, encoding_of(array.shape, outtype)),
    )
    source = WeightSource.from_arrays(base, written.read, written.read)
    return {EXPORT: Variant(source), **merged_variant(opened, weights)}


def file_name_of(opened: Resolved, about: About, encoding: Encoding, *, lora: bool = False) -> str:
    """Return the name of the exported file."""
    parts = labels(about, opened.model.architecture.parameters())
    return file_name(parts, encoding, lora=lora)


def modelfile_of(opened: Resolved, about: About, outtype: Outtype, thinking: bool | None) -> str:
    """Return the Modelfile for a merged GGUF; `thinking` None starts answers as in training.

    Raises:
        InputError: Ollama cannot reproduce the chat template.
    """
    base = opened.model
    if thinking is None:
        thinking = thinking_of(opened.known_adapter.origin, opened.known_tokenizer)
    trained = opened.known_adapter.origin.max_length or 0
    return modelfile(
        opened.known_tokenizer,
        sampling_defaults(base.folder, base.name),
        gguf=file_name_of(opened, about, outtype),
        context=min(base.architecture.positions, max(OLLAMA_CONTEXT, trained)),
        thinking=thinking,
    )


def gguf_bytes(architecture: Architecture, outtype: Outtype) -> int:
    """Return the total size of a model's tensors."""
    shapes = architecture.weight_shapes().values()
    return sum(encoded_bytes(shape, encoding_of(shape, outtype)) for shape in shapes)


def about_of(opened: Resolved, title: str) -> About:
    """Return the descriptive metadata of a fine-tune."""
    base = opened.model
    license = license_of(base.name) or license_in(base.folder)
    name = None if license is None else license.name or license.identifier
    return About(base=opened.source, title=title, license=name)


def write_gguf_adapter(new: Path, adapter: Adapter, opened: Resolved, about: About) -> Adapter:
    """Write an adapter for llama.cpp and return it as read back from the file."""
    architecture = opened.model.architecture
    path = new / file_name_of(opened, about, "f32", lora=True)
    write_adapter(path, adapter=adapter, architecture=architecture, about=about)
    found = read_adapter(path, architecture)
    lora = adapter.lora.model_copy(
        update={"rank": found.rank, "alpha": found.scale * found.rank, "rslora": False}
    )
    return replace(adapter, lora=lora, arrays=found.arrays)
