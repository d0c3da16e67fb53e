"""Tokenised rows on the disk: made once, resumed where they were interrupted, then paged in.

A folder holds the rows of one source under one way of making them, in parts of `PART` blocks:
Arrow streams, as Hugging Face `datasets` writes and reads them. Each part carries what became of
its records. COMPLETE.json, written last, counts the parts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from qwen_local.datasets import stored
from qwen_local.datasets.making import Made, Making
from qwen_local.files import json_bytes, room_for, write_durably

COMPLETE = "COMPLETE.json"
MADE = b"qwen_local"
"""The key of a part's own metadata."""

Part = tuple[Made, pa.RecordBatch]


def cache_folder() -> Path:
    """Where Hugging Face `datasets` keeps what it makes, a folder beside its own."""
    home = os.environ.get("HF_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    folder = os.environ.get("HF_DATASETS_CACHE") or str(Path(home) / "datasets")
    return Path(folder).expanduser() / "qwen-local"


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
        """What lies there already: parts from the first on, as long as they can be read."""
        index = 0
        while True:
            try:
                yield read_part(self._path(index))
            except (OSError, ValueError):  # none, or damaged: it is made again
                return
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
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        schema = stored.SCHEMA.with_metadata({MADE: json.dumps(made.to_json()).encode()})
        table = pa.Table.from_batches(batches, stored.SCHEMA).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_table(table.replace_schema_metadata(schema.metadata))
        content = sink.getvalue()
        path = self._path(index)
        new = path.with_name(f".new-{os.getpid()}-{path.name}")  # another process may make it too
        with room_for(path, content.size):
            write_durably(new, content.to_pybytes())
            new.replace(path)
        return read_part(path)

    def complete(self, parts: int) -> None:
        """Say that no more come."""
        new = self.folder / f".new-{os.getpid()}-{COMPLETE}"
        write_durably(new, json_bytes({"parts": parts}))
        new.replace(self.folder / COMPLETE)

    def _path(self, index: int) -> Path:
        return self.folder / f"rows-{index:05d}.arrow"


def read_part(path: Path) -> Part:
    """A part as it is paged in.

    Raises:
        OSError: it is not there.
        ValueError: it is damaged.
    """
    with pa.memory_map(str(path)) as file:
        stream = pa.ipc.open_stream(file)
        told = (stream.schema.metadata or {}).get(MADE)
        batches = list(stream)
    if told is None or len(batches) != 1 or stream.schema != stored.SCHEMA:
        raise ValueError(f"{path} is no part of a cache")
    return Made.from_json(json.loads(told)), batches[0]
