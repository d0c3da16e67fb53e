"""Cache of tokenized rows: written once, resumed after an interruption, then paged in.

A folder holds the rows of one source under one configuration, in parts of `PART` blocks: Arrow
streams, as Hugging Face `datasets` writes and reads them. Beside each is a file with its checksum
and the `Outcome` of its records. COMPLETE.json, written last, counts the parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from qwen_local.datasets import row_store
from qwen_local.datasets.row_builder import Outcome, TokenizeConfig
from qwen_local.files import expanded, json_bytes, put_by, room_for

COMPLETE = "COMPLETE.json"
PIECE = 2**20

Part = tuple[Outcome, row_store.Batch]


def cache_folder() -> Path:
    """Return the cache folder, beside those of Hugging Face `datasets`."""
    home = os.environ.get("HF_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    folder = os.environ.get("HF_DATASETS_CACHE") or str(Path(home) / "datasets")
    return expanded(folder) / "qwen-local"


def cache_key(config: TokenizeConfig, **more: Any) -> str:
    """Return a digest of everything that the rows of a source depend on, our code included.

    Args:
        config: how records are tokenized.
        more: the rest, in JSON types: the content of the source, its format, its limit.
    """
    digest = hashlib.sha256(
        json_bytes(
            more
            | {
                "tokenizer": config.tokenizer.sha256,
                "max_length": config.max_length,
                "overlong": config.overlong,
                "train_on": config.train_on,
                "thinking": config.thinking,
                "libraries": [metadata.version(name) for name in ("tokenizers", "jinja2")],
            }
        )
    )
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:32]


class Cache:
    """The folder of one source and configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def parts(self) -> Iterator[Part]:
        """Yield the cached parts from the first on, up to one that is missing or damaged."""
        index = 0
        while True:
            try:
                part = read_part(self._path(index), index)
            except Exception:  # missing, or damaged in any way: it is written again
                return
            yield part
            index += 1

    def is_complete(self, parts: int) -> bool:
        """Return True if the cache is complete with this number of parts."""
        try:
            complete = json.loads((self.folder / COMPLETE).read_bytes())
        except (OSError, ValueError):
            return False
        return bool(complete == {"parts": parts})

    def add(self, index: int, outcome: Outcome, batches: Sequence[pa.RecordBatch]) -> Part:
        """Write a part, and map it back into memory.

        Raises:
            DiskFullError: the disk has no room for it.
            OSError: it cannot be written.
            ValueError: the content read back differs from the content written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_batches(batches, row_store.SCHEMA).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, row_store.SCHEMA) as stream:
            stream.write_table(table)
        content = memoryview(sink.getvalue())
        path = self._path(index)
        counts = outcome.to_json()
        about = {"outcome": counts, "crc32": zlib.crc32(content, _crc32(index, counts))}
        with room_for(path, len(content)):
            _put(path, content)
            # Last: it marks the part as whole.
            _put(path.with_suffix(".json"), json_bytes(about))
        return read_part(path, index)

    def complete(self, parts: int) -> None:
        """Mark the cache as complete."""
        _put(self.folder / COMPLETE, json_bytes({"parts": parts}))

    def _path(self, index: int) -> Path:
        return self.folder / f"rows-{index:05d}.arrow"


def _put(path: Path, content: bytes | memoryview) -> None:
    """Put a file in its place; another process may be writing the same one."""
    put_by(path.with_name(f".new-{os.getpid()}-{path.name}"), path, content)


def read_part(path: Path, index: int) -> Part:
    """Map a part into memory.

    Args:
        path: file of its rows.
        index: number of the part.

    Raises:
        OSError: the file is missing.
        ValueError: its content is not what was written.
    """
    about = json.loads(path.with_suffix(".json").read_bytes())
    crc = _crc32(index, about["outcome"])
    with path.open("rb") as file:  # read, and not paged in: that would count as our memory
        while piece := file.read(PIECE):
            crc = zlib.crc32(piece, crc)
    if crc != about["crc32"]:
        raise ValueError(f"{path} is damaged")
    with pa.memory_map(str(path)) as mapped:
        content = mapped.read_buffer()
    # A table without rows is written without a batch.
    rows = next(iter(pa.ipc.open_stream(content)), row_store.BatchBuilder.empty().batch())
    return Outcome.from_json(about["outcome"]), row_store.Batch(rows, content)


def _crc32(index: int, outcome: dict[str, Any]) -> int:
    """Checksum of index and counts, which the rows continue: it ties the three together."""
    return zlib.crc32(json_bytes([index, outcome]))
