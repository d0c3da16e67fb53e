"""Tokenised rows on the disk: made once, resumed where they were interrupted, then paged in.

A folder holds the rows of one source under one way of making them, in parts of `PART` blocks:
Arrow streams, as Hugging Face `datasets` writes and reads them. Each part carries what became of
its records. COMPLETE.json, written last, counts the parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from qwen_local.datasets import faults, files, formats, stored, template, tokenizer, trim, turns
from qwen_local.datasets.making import Made, Making
from qwen_local.files import json_bytes, replace_file, room_for

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
    from qwen_local.datasets import making as made_by

    digest = hashlib.sha256(
        json_bytes(
            more
            | {
                "tokenizer": making.tokenizer.sha256,
                "max_length": making.max_length,
                "overlong": making.overlong,
                "train_on": making.train_on,
                "thinking": making.thinking,
            }
        )
    )
    modules = (faults, files, formats, made_by, stored, template, tokenizer, trim, turns)
    for module in modules:
        assert module.__file__ is not None
        digest.update(Path(module.__file__).read_bytes())
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
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        schema = stored.SCHEMA.with_metadata({MADE: json.dumps(made.to_json()).encode()})
        table = pa.Table.from_batches(batches, stored.SCHEMA).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_table(table.replace_schema_metadata(schema.metadata))
        content = sink.getvalue()
        with room_for(self._path(index), content.size):
            replace_file(self._path(index), content.to_pybytes())
        return read_part(self._path(index))

    def complete(self, parts: int) -> None:
        """Say that no more come."""
        replace_file(self.folder / COMPLETE, json_bytes({"parts": parts}))

    def remove(self) -> None:
        """Forget all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

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
