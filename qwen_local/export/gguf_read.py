"""GGUF files read again: to prove an export, and to refuse what is damaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from qwen_local.errors import Fault, ModelError
from qwen_local.export.gguf_encoding import TYPES
from qwen_local.export.gguf_names import tensor_names
from qwen_local.export.gguf_vocabulary import Vocabulary
from qwen_local.export.merge import ExportError
from qwen_local.models.architecture import Architecture
from qwen_local.models.config import shown

HINT = "export it again"
DAMAGE = (OSError, ValueError, LookupError, ArithmeticError, TypeError, RecursionError)
"""What the library raises where a file is not what it says."""


class _Reader(gguf.GGUFReader):
    """One that ends where the file ends: a length of 2^60 in it is no loop of as many rounds."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise ValueError(f"it ends at {len(self.data):,} bytes, within what it announces")
        return super()._get(offset, dtype, count, override_order)


def open_file(path: Path) -> gguf.GGUFReader:
    """A file's header, with its tensors mapped into memory and not read.

    Raises:
        ModelError: it is damaged, or no GGUF file.
    """
    try:
        with np.errstate(over="raise"):
            return _Reader(path)
    except DAMAGE as error:
        raise ModelError.at(str(path), f"not a readable GGUF file: {error}", HINT) from None


def value(reader: gguf.GGUFReader, key: str) -> Any:
    """What a file says under a key, or None where it says nothing that can be read."""
    field = reader.get_field(key)
    try:
        return None if field is None else field.contents()
    except DAMAGE:
        return None


def shape_of(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    """The shape as numpy has it, which GGUF writes the other way round."""
    return tuple(int(size) for size in reversed(tensor.shape))


def numbers(tensor: gguf.ReaderTensor) -> np.ndarray:
    """A tensor of an open file as float32."""
    held = np.asarray(tensor.data)
    floats: np.ndarray = gguf.dequantize(held, tensor.tensor_type)
    return floats.copy() if np.may_share_memory(floats, held) else floats


class GgufWeights:
    """The tensors of a model's GGUF file by their names in safetensors."""

    def __init__(self, path: Path, architecture: Architecture) -> None:
        """Open a file and find every tensor in it.

        Args:
            path: of the file.
            architecture: of the model that it must hold.

        Raises:
            ModelError: it is damaged, or holds another model; all faults at once.
        """
        reader = open_file(path)
        found = {tensor.name: tensor for tensor in reader.tensors}
        family = value(reader, "general.architecture")
        if family != architecture.model_type:
            problem = f"expected {architecture.model_type}; found {shown(family)}"
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
        held = {tensor.name: tensor for tensor in reader.tensors}
        self._tensors = {name: held[theirs] for name, theirs in names.items()}
        self._reader, self._path = reader, path

    def check_settings(self, config: Mapping[str, Any], vocabulary: Vocabulary) -> None:
        """Refuse a file whose figures or tokens are not these.

        Args:
            config: of the model, as `engine_config` has it.
            vocabulary: of its tokenizer.

        Raises:
            ExportError: which are others.
        """
        family = config["model_type"]
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
        for key, wanted in expected.items():
            held = value(self._reader, key)
            rounded = float(np.float32(wanted)) if isinstance(wanted, float) else wanted
            if held != rounded:
                raise ExportError(f"{key} was not written as it is: {shown(held)}")

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A tensor, or some of its rows, as float32.

        Args:
            name: as in `Architecture.weight_shapes`.
            rows: which, None for all; the rest stays on the disk.
        """
        tensor = self._tensors[name]
        laid = np.asarray(tensor.data)  # says how it lies in the file; nothing of it is read here
        start, stop, _ = (slice(None) if rows is None else rows).indices(len(laid))
        each = laid.nbytes // len(laid)
        # Not through the map: what was read of it would stay in memory with it.
        held = np.fromfile(
            self._path,
            laid.dtype,
            count=(stop - start) * each // laid.itemsize,
            offset=tensor.data_offset + start * each,
        ).reshape(stop - start, *laid.shape[1:])
        floats: np.ndarray = gguf.dequantize(held, tensor.tensor_type)
        return floats
