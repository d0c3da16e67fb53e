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
from qwen_local.export.gguf_names import gguf_architecture, tensor_names
from qwen_local.export.gguf_vocabulary import read_vocabulary
from qwen_local.export.merge import ExportError
from qwen_local.models.architecture import Shape
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
        path: of the new file, which is not synced; an error may leave an incomplete one.
        files: the model, or its base model if it is a merge.
        tensors: (name in safetensors, float32), in the order of `weight_shapes`; consumed one at a
            time.
        outtype: encoding of matrices; see `encoding_of`.
        about: descriptive metadata.
        chat_template: whether the file includes it. Ollama would use it instead of the Modelfile's,
            and let a model think whose adapter was trained not to.

    Raises:
        ModelError: llama.cpp does not support the tokenizer; nothing was written.
        ExportError: a value is too large for the encoding, or the file cannot be written.
    """
    architecture = files.architecture
    vocabulary = read_vocabulary(files.folder, architecture.vocabulary)
    names, shapes = tensor_names(architecture), architecture.weight_shapes()
    with new_file(path, gguf_architecture(architecture)) as writer:
        writer.add_type(gguf.GGUFType.MODEL)
        add_about(writer, about, labels(about, architecture.parameters()))
        writer.add_file_type(FILE_TYPES[outtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_sizes(writer, files)
        vocabulary.add_to(writer, chat_template=chat_template)
        for name, shape in shapes.items():
            declare(writer, names[name], shape, encoding_of(shape, outtype))
        write_header(writer)
        given = iter(tensors)
        for name, shape in shapes.items():
            writer.write_tensor_data(_encoded(next(given), name, shape, outtype))


def _encoded(
    given: tuple[str, np.ndarray], name: str, shape: Shape, outtype: Outtype
) -> np.ndarray:
    """Encode a tensor. The caller keeps no reference to it, so that its memory is freed."""
    assert (given[0], given[1].shape) == (name, shape), (given[0], given[1].shape, name, shape)
    return encode(given[1], encoding_of(shape, outtype), name)


@contextmanager
def new_file(path: Path, architecture: str) -> Iterator[gguf.GGUFWriter]:
    """Create a GGUF file and close it at the end.

    Args:
        path: of the file.
        architecture: from `gguf_architecture`.

    Raises:
        ExportError: it cannot be written.
    """
    writer = gguf.GGUFWriter(path, architecture)
    try:
        try:
            yield writer
        finally:
            writer.close()
    except OSError as error:
        raise ExportError(f"{path.parent}: cannot be written: {error}") from error


def declare(writer: gguf.GGUFWriter, name: str, shape: Shape, encoding: Encoding) -> None:
    """Declare a tensor; all must be declared before the first is written."""
    size = encoded_bytes(shape, encoding)
    writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=TYPES[encoding])


def write_header(writer: gguf.GGUFWriter) -> None:
    """Write everything that precedes the tensors."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _add_sizes(writer: gguf.GGUFWriter, files: ModelFiles) -> None:
    """Add the sizes of config.json. Models with scaled positions were refused before."""
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
