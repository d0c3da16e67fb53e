"""Reading GGUF files, to prove an export and to refuse damaged files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from qwen_local.errors import Fault, ModelError
from qwen_local.export.gguf_encoding import TYPES
from qwen_local.export.gguf_names import gguf_architecture, tensor_names
from qwen_local.export.gguf_vocabulary import Vocabulary
from qwen_local.export.merge import ExportError
from qwen_local.models.architecture import Architecture
from qwen_local.models.config import shown

HINT = "export it again"
DAMAGE_ERRORS = (OSError, ValueError, LookupError, ArithmeticError, TypeError, RecursionError)
"""Errors that the library raises for damaged files."""


class _Reader(gguf.GGUFReader):
    """Reader that checks lengths against the file size, so that 2^60 does not start a loop."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise ValueError(f"it is truncated at {len(self.data):,} bytes")
        return super()._get(offset, dtype, count, override_order)


def open_file(path: Path) -> gguf.GGUFReader:
    """Read a file's header; its tensors are mapped into memory and not read.

    Raises:
        ModelError: it is damaged, or not a GGUF file.
    """
    try:
        with np.errstate(over="raise"):
            return _Reader(path)
    except DAMAGE_ERRORS as error:
        raise ModelError.at(str(path), f"not a readable GGUF file: {error}", HINT) from None


def value(reader: gguf.GGUFReader, key: str) -> Any:
    """Return the value of a key, or None if it is missing or unreadable."""
    field = reader.get_field(key)
    try:
        return None if field is None else field.contents()
    except DAMAGE_ERRORS:
        return None


def shape_of(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    """Return the shape in numpy's order; GGUF reverses it."""
    return tuple(int(size) for size in reversed(tensor.shape))


def to_float32(tensor: gguf.ReaderTensor) -> np.ndarray:
    """Read a tensor of an open file as float32."""
    stored = np.asarray(tensor.data)
    floats: np.ndarray = gguf.dequantize(stored, tensor.tensor_type)
    return floats.copy() if np.may_share_memory(floats, stored) else floats


class GgufWeights:
    """Tensors of a model's GGUF file, by their names in safetensors."""

    def __init__(self, path: Path, architecture: Architecture) -> None:
        """Open a file and find every tensor in it.

        Args:
            path: of the file.
            architecture: of the model that it must hold.

        Raises:
            ModelError: it is damaged, or holds another model; all faults together.
        """
        reader = open_file(path)
        found = {tensor.name: tensor for tensor in reader.tensors}
        written, expected = value(reader, "general.architecture"), gguf_architecture(architecture)
        if written != expected:
            problem = f"expected {expected}; found {shown(written)}"
            raise ModelError.at(f"{path}: general.architecture", problem, HINT)
        names, faults = tensor_names(architecture), []
        for name, shape in architecture.weight_shapes().items():
            tensor = found.pop(names[name], None)
            if tensor is None:
                faults.append(Fault(f"{path}: {names[name]}", "missing", HINT))
            elif shape_of(tensor) != shape:
                problem = f"expected shape {shape}; found {shape_of(tensor)}"
                faults.append(Fault(f"{path}: {names[name]}", problem, HINT))
            elif tensor.tensor_type not in TYPES.values():
                problem = f"expected {', '.join(TYPES)}; found {tensor.tensor_type.name}"
                faults.append(Fault(f"{path}: {names[name]}", problem, HINT))
        faults += [Fault(f"{path}: {name}", "not a tensor of this model", HINT) for name in found]
        if faults:
            raise ModelError(faults)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._tensors = {name: tensors[theirs] for name, theirs in names.items()}
        self._reader, self._path, self._architecture = reader, path, expected

    def check_settings(self, config: Mapping[str, Any], vocabulary: Vocabulary) -> None:
        """Refuse a file with other sizes or tokens.

        Args:
            config: of the model, from `engine_config`.
            vocabulary: of its tokenizer.

        Raises:
            ExportError: a value differs.
        """
        family = self._architecture
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        expected = {
            f"{family}.context_length": config["max_position_embeddings"],
            f"{family}.embedding_length": hidden,
            f"{family}.block_count": config["num_hidden_layers"],
            f"{family}.feed_forward_length": config["intermediate_size"],
            f"{family}.attention.head_count": heads,
            f"{family}.attention.head_count_kv": config["num_key_value_heads"],
            f"{family}.attention.key_length": config.get("head_dim", hidden // heads),
            f"{family}.attention.value_length": config.get("head_dim", hidden // heads),
            f"{family}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
            f"{family}.rope.freq_base": config["rope_theta"],
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": list(vocabulary.tokens),
            "tokenizer.ggml.token_type": [int(kind) for kind in vocabulary.types],
            "tokenizer.ggml.merges": list(vocabulary.merges),
            "tokenizer.ggml.eos_token_id": vocabulary.end_of_turn,
        }
        for key, given in expected.items():
            found = value(self._reader, key)
            rounded = float(np.float32(given)) if isinstance(given, float) else given
            if found != rounded:
                raise ExportError(f"{key} was not written correctly: found {shown(found)}")

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Read a tensor, or some of its rows, as float32.

        Args:
            name: as in `Architecture.weight_shapes`.
            rows: to read; None for all.
        """
        tensor = self._tensors[name]
        mapped = np.asarray(tensor.data)  # for its dtype and shape; nothing is read here
        start, stop, _ = (slice(None) if rows is None else rows).indices(len(mapped))
        row_bytes = mapped.nbytes // len(mapped)
        # Not read through the map, whose pages would stay in memory.
        stored = np.fromfile(
            self._path,
            mapped.dtype,
            count=(stop - start) * row_bytes // mapped.itemsize,
            offset=tensor.data_offset + start * row_bytes,
        ).reshape(stop - start, *mapped.shape[1:])
        floats: np.ndarray = gguf.dequantize(stored, tensor.tensor_type)
        return floats
