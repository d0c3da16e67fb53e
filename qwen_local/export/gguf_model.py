"""A whole model as one GGUF file, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np

from qwen_local.export.gguf_about import About, add_about, labels
from qwen_local.export.gguf_encoding import (
    TYPES,
    Encoding,
    Outtype,
    encode,
    encoded_bytes,
    encoding_of,
)
from qwen_local.export.gguf_names import tensor_names
from qwen_local.export.gguf_vocabulary import read_vocabulary
from qwen_local.export.merge import ExportError
from qwen_local.models.config import engine_config
from qwen_local.models.source import ModelFiles

FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


def write_model(
    path: Path,
    *,
    files: ModelFiles,
    tensors: Iterable[tuple[str, np.ndarray]],
    outtype: Outtype,
    about: About,
    chat_template: bool = True,
) -> None:
    """Write a model that llama.cpp runs, with its tokenizer and its chat template.

    Args:
        path: of the new file; what an error leaves there is not whole, and neither is it synced.
        files: the model, or the base that it was merged from.
        tensors: (name in safetensors, float32), in the order of `weight_shapes`, each asked for
            when the one before is written.
        outtype: what matrices are held in; see `encoding_of`.
        about: what the file says of the model.
        chat_template: whether it is in the file. Ollama would take it for its Modelfile's, and
            think where the adapter was taught not to.

    Raises:
        ModelError: the tokenizer is none that llama.cpp can follow; nothing was written.
        ExportError: a number does not fit the encoding, or the file cannot be written.
    """
    architecture = files.architecture
    vocabulary = read_vocabulary(files.folder, architecture.vocabulary)
    names, shapes = tensor_names(architecture), architecture.weight_shapes()
    with new_file(path, architecture.model_type) as writer:
        writer.add_type(gguf.GGUFType.MODEL)
        add_about(writer, about, labels(about, architecture.parameters()))
        writer.add_file_type(FILE_TYPES[outtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_figures(writer, files)
        vocabulary.add_to(writer, chat_template=chat_template)
        for name, shape in shapes.items():
            announce(writer, names[name], shape, encoding_of(shape, outtype))
        begin(writer)
        given = iter(tensors)
        for name, shape in shapes.items():
            writer.write_tensor_data(_encoded(next(given), name, shape, outtype))


def _encoded(
    given: tuple[str, np.ndarray], name: str, shape: tuple[int, ...], outtype: Outtype
) -> np.ndarray:
    """A tensor as the file holds it. The caller keeps no name for what was given: it is let go."""
    assert (given[0], given[1].shape) == (name, shape), (given[0], given[1].shape, name, shape)
    return encode(given[1], encoding_of(shape, outtype), name)


@contextmanager
def new_file(path: Path, model_type: str) -> Iterator[gguf.GGUFWriter]:
    """A file that is closed in the end.

    Raises:
        ExportError: it cannot be written.
    """
    writer = gguf.GGUFWriter(path, model_type)
    try:
        try:
            yield writer
        finally:
            writer.close()
    except OSError as error:
        raise ExportError(f"{path.parent}: cannot be written: {error}") from error


def announce(
    writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], encoding: Encoding
) -> None:
    """Say what a tensor will be; all are said before the first is written."""
    size = encoded_bytes(shape, encoding)
    writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=TYPES[encoding])


def begin(writer: gguf.GGUFWriter) -> None:
    """Write everything that stands before the tensors."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _add_figures(writer: gguf.GGUFWriter, files: ModelFiles) -> None:
    """The figures of config.json; none that we train has scaled positions."""
    architecture, config = files.architecture, engine_config(files.config)
    writer.add_vocab_size(architecture.vocabulary)
    writer.add_context_length(architecture.positions)
    writer.add_embedding_length(architecture.hidden)
    writer.add_block_count(architecture.layers)
    writer.add_feed_forward_length(architecture.intermediate)
    writer.add_head_count(architecture.heads)
    writer.add_head_count_kv(architecture.kv_heads)
    writer.add_key_length(architecture.head_dim)
    writer.add_value_length(architecture.head_dim)
    writer.add_rope_freq_base(architecture.rope_theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
