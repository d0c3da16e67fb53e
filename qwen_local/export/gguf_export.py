"""A merged model as GGUF, alone or with Ollama's Modelfile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from qwen_local.adapters.lora import Adapter
from qwen_local.adapters.prompt import thinking_of
from qwen_local.backends.weights import Weights
from qwen_local.export.blocks import Source, Voice, in_block_0, of_arrays
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
from qwen_local.export.live import merged_voices
from qwen_local.export.merge import merged_tensors, verify
from qwen_local.export.ollama import modelfile
from qwen_local.export.opening import Opened
from qwen_local.export.proof import EXPORT
from qwen_local.inference.sampling_options import sampling_defaults
from qwen_local.models.architecture import Architecture
from qwen_local.models.config import engine_config
from qwen_local.models.licenses import license_in, license_of
from qwen_local.models.source import ModelFiles

CONTEXT = 8192
"""Tokens of a conversation in Ollama, which takes memory for all of them: unless the adapter was
trained on more, or the model has fewer."""


def write_gguf(
    new: Path,
    opened: Opened,
    weights: Weights,
    outtype: Outtype,
    about: About,
    *,
    template: bool,
) -> dict[str, Voice]:
    """Write the merged model, with or without its chat template.

    Returns:
        The voices of what is in the file, and of the merge that it should hold.
    """
    base = opened.base
    path = new / file_name_of(opened, about, outtype)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        return merged_tensors(base.architecture, opened.adapter, weights, opened.held)

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
    return {EXPORT: Voice(_source(base, written.read)), **merged_voices(opened, weights)}


def _source(base: ModelFiles, read: Callable[[str, slice | None], np.ndarray]) -> Source:
    """The tensors of a GGUF file."""
    names = base.architecture.weight_shapes()

    def block(number: int) -> dict[str, np.ndarray]:
        prefix = f"model.layers.{number}."
        return {in_block_0(name): read(name, None) for name in names if name.startswith(prefix)}

    return of_arrays(base, read, block)


def file_name_of(opened: Opened, about: About, encoding: Encoding, *, lora: bool = False) -> str:
    """The name of the file that is made."""
    said = labels(about, opened.base.architecture.parameters())
    return file_name(said, encoding, lora=lora)


def modelfile_of(opened: Opened, about: About, outtype: Outtype, thinking: bool | None) -> str:
    """The Modelfile beside a merged GGUF; `thinking` None begins answers as they were trained.

    Raises:
        InputError: Ollama could not render what the chat template does.
    """
    base = opened.base
    if thinking is None:
        thinking = thinking_of(opened.adapter.origin, opened.tokenizer)
    learned = opened.adapter.origin.max_length or 0
    return modelfile(
        opened.tokenizer,
        sampling_defaults(base.folder, base.name),
        gguf=file_name_of(opened, about, outtype),
        context=min(base.architecture.positions, max(CONTEXT, learned)),
        thinking=thinking,
    )


def gguf_bytes(architecture: Architecture, outtype: Outtype) -> int:
    """Of a model's tensors."""
    shapes = architecture.weight_shapes().values()
    return sum(encoded_bytes(shape, encoding_of(shape, outtype)) for shape in shapes)


def about_of(opened: Opened, title: str) -> About:
    """What a file says of the fine-tune of this title."""
    base = opened.base
    license = license_of(base.name) or license_in(base.folder)
    named = None if license is None else license.name or license.identifier
    return About(base=opened.source, title=title, license=named)


def write_gguf_adapter(new: Path, adapter: Adapter, opened: Opened, about: About) -> Adapter:
    """Write an adapter for llama.cpp; what is read back from the file."""
    architecture = opened.base.architecture
    path = new / file_name_of(opened, about, "f32", lora=True)
    write_adapter(path, adapter=adapter, architecture=architecture, about=about)
    held = read_adapter(path, architecture)
    lora = adapter.lora.model_copy(
        update={"rank": held.rank, "alpha": held.scale * held.rank, "rslora": False}
    )
    return replace(adapter, lora=lora, arrays=held.arrays)
