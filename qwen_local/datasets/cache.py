"""Tokenized rows on the disk: made once, resumed where they were interrupted, then paged in.

A folder holds the rows of one source under one way of making them, in parts of `PART` blocks:
Arrow streams, as Hugging Face `datasets` writes and reads them, each with a checksum and what
became of its records beside it. COMPLETE.json, written last, counts the parts.
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
from qwen_local.datasets.row_builder import Made, Making
from qwen_local.files import expanded, json_bytes, put_by, room_for

COMPLETE = "COMPLETE.json"
PIECE = 2**20

Part = tuple[Made, row_store.Batch]


def cache_folder() -> Path:
    """Where Hugging Face `datasets` keeps what it makes, a folder beside its own."""
    home = os.environ.get("HF_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    folder = os.environ.get("HF_DATASETS_CACHE") or str(Path(home) / "datasets")
    return expanded(folder) / "qwen-local"


def cache_key(making: Making, **more: Any) -> str:
    """A name for everything that the rows of a source depend on, this program among it.

    Args:
        making: how rows are made.
        more: the rest, in JSON's types: the content of the source, its format, its limit.
    """
    digest = hashlib.sha256(
        json_bytes(
            more
            | {
                "tokenizer": making.tokenizer.sha256,
                "max_length": making.max_length,
                "overlong": making.overlong,
                "train_on": making.train_on,
                "thinking": making.thinking,
                "libraries": [metadata.version(name) for name in ("tokenizers", "jinja2")],
            }
        )
    )
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:32]


class Cache:
    """One folder of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def parts(self) -> Iterator[Part]:
        """What lies there already: parts from the first on, as long as they are whole."""
        index = 0
        while True:
            try:
                part = read_part(self._path(index), index)
            except Exception:  # none, or damaged in whatever way: it is made again
                return
            yield part
            index += 1

    def is_complete(self, parts: int) -> bool:
        """Whether so many parts are all there are."""
        try:
            told = json.loads((self.folder / COMPLETE).read_bytes())
        except (OSError, ValueError):
            return False
        return bool(told == {"parts": parts})

    def add(self, index: int, made: Made, batches: Sequence[pa.RecordBatch]) -> Part:
        """Write a part, and read it back as it is paged in.

        Raises:
            DiskFullError: there is no room for it.
            OSError: it cannot be written.
            ValueError: what is read back is not what was written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_batches(batches, row_store.SCHEMA).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, row_store.SCHEMA) as stream:
            stream.write_table(table)
        content = memoryview(sink.getvalue())
        path = self._path(index)
        counts = made.to_json()
        told = {"made": counts, "crc32": zlib.crc32(content, _crc32(index, counts))}
        with room_for(path, len(content)):
            _put(path, content)
            # Last: it says that the part is whole.
            _put(path.with_suffix(".json"), json_bytes(told))
        return read_part(path, index)

    def complete(self, parts: int) -> None:
        """Say that no more come."""
        _put(self.folder / COMPLETE, json_bytes({"parts": parts}))

    def _path(self, index: int) -> Path:
        return self.folder / f"rows-{index:05d}.arrow"


def _put(path: Path, content: bytes | memoryview) -> None:
    """Put a file in its place; another process may be making the same one."""
    put_by(path.with_name(f".new-{os.getpid()}-{path.name}"), path, content)


def read_part(path: Path, index: int) -> Part:
    """A part as it is paged in.

    Args:
        path: of its rows.
        index: of the part.

    Raises:
        OSError: it is not there.
        ValueError: it is not what was written.
    """
    told = json.loads(path.with_suffix(".json").read_bytes())
    crc = _crc32(index, told["made"])
    with path.open("rb") as file:  # read, and not paged in: that would count as our memory
        while piece := file.read(PIECE):
            crc = zlib.crc32(piece, crc)
    if crc != told["crc32"]:
        raise ValueError(f"{path} is damaged")
    with pa.memory_map(str(path)) as mapped:
        content = mapped.read_buffer()
    # A table without rows is written without a batch.
    rows = next(iter(pa.ipc.open_stream(content)), row_store.RowsMade.empty().batch())
    return Made.from_json(told["made"]), row_store.Batch(rows, content)


def _crc32(index: int, made: dict[str, Any]) -> int:
    """The checksum of a part up to its rows: it is no other part, and nobody changed its counts."""
    return zlib.crc32(json_bytes([index, made]))
