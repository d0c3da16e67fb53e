"""Rows in an Arrow table: in memory, or in files that the system pages in as they are read.

Hard targets need no column of their own: they are the row's own tokens at its supervised spans.

Shapes: R = rows, C = tokens of one row (its positions and the token after the last).
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import Targets, shift_labels

SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),  # [C]
        ("spans", pa.list_(pa.int32())),  # [2 x n]: supervised positions, start..stop each
        ("content", pa.uint64()),  # hash of the record's content
        ("tokens", pa.binary(16)),  # hash of ids and spans
        ("number", pa.int64()),  # line or record of the source
    ]
)


@dataclass(slots=True)
class BatchBuilder:
    """Columns of the rows that the next record batch will hold."""

    ids: list[np.ndarray]
    spans: list[np.ndarray]
    content: list[int]
    tokens: list[bytes]
    number: list[int]

    @classmethod
    def empty(cls) -> BatchBuilder:
        """A builder without rows."""
        return cls([], [], [], [], [])

    def add(
        self, ids: Sequence[int], supervised: Sequence[bool], content: int, number: int
    ) -> None:
        """Add a row.

        Args:
            ids: tokens, shape [C]; the last of them is supervised.
            supervised: True where the token counts in the loss, shape [C].
            content: hash of the record's content.
            number: its line.
        """
        ids_C = np.asarray(ids, np.int32)
        # Where supervised stretches start and stop, among the positions: token t + 1 is the target
        # of position t.
        edges = np.flatnonzero(np.diff(np.asarray(supervised, np.int8)[1:], prepend=0, append=0))
        spans = edges.astype(np.int32)
        digest = hashlib.blake2b(ids_C.astype("<i4").data, digest_size=16)
        digest.update(spans.astype("<i4").data)
        self.ids.append(ids_C)
        self.spans.append(spans)
        self.content.append(content)
        self.tokens.append(digest.digest())
        self.number.append(number)

    def batch(self) -> pa.RecordBatch:
        """Return the rows as an Arrow record batch."""
        arrays = [
            _lists(self.ids),
            _lists(self.spans),
            _array(np.array(self.content, np.uint64), pa.uint64()),
            _array(np.array(self.tokens, "S16"), pa.binary(16)),
            _array(np.array(self.number, np.int64), pa.int64()),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _lists(parts: Sequence[np.ndarray]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int32)
    values = np.concatenate([np.zeros(0, np.int32), *parts])
    return pa.ListArray.from_arrays(_array(offsets, pa.int32()), _array(values, pa.int32()))


# From numpy and back by the buffers: Arrow's own ways import pandas, 45 MB of it.


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _values(array: pa.Array, kind: type | str) -> np.ndarray:
    """A view."""
    return np.frombuffer(array.buffers()[1], kind)[array.offset :][: len(array)]


class Batch(NamedTuple):
    """An Arrow record batch, and the memory-mapped file that it lies in, if any."""

    rows: pa.RecordBatch
    file: pa.Buffer | None = None


MADVISE = ctypes.CDLL(None).madvise if hasattr(mmap, "MADV_DONTNEED") else None
"""The C library's function; None on Windows. That of `mmap.mmap` keeps a file open for each map."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One record batch and views into it."""

    batch: Batch
    ids: np.ndarray
    ids_at: np.ndarray
    """int32 [rows + 1]"""
    spans: np.ndarray
    spans_at: np.ndarray

    @classmethod
    def of(cls, batch: Batch) -> _Chunk:
        return cls(batch, *_view(batch.rows.column("ids")), *_view(batch.rows.column("spans")))

    def lengths(self) -> np.ndarray:
        """Count the positions of each row: int64 [rows]."""
        return (np.diff(self.ids_at) - 1).astype(np.int64)

    def supervised(self) -> np.ndarray:
        """Count the supervised positions of each row: int64 [rows]."""
        signed = self.spans.astype(np.int64)
        signed[::2] *= -1  # each span counts stop - start; every row has at least one
        return np.add.reduceat(signed, self.spans_at[:-1])

    def content(self) -> np.ndarray:
        """Return the content hash of each row's record: uint64 [rows]."""
        return _values(self.batch.rows.column("content"), np.uint64)

    def tokens(self) -> np.ndarray:
        """Return the hash of each row's ids and spans: S16 [rows]."""
        return _values(self.batch.rows.column("tokens"), "S16")

    def row(self, r: int) -> tuple[np.ndarray, Targets]:
        """Return (ids int32 [positions], targets) of row r, copied out of the file."""
        ids_C = self.ids[self.ids_at[r] : self.ids_at[r + 1]].copy()
        supervised_C = np.zeros(len(ids_C), bool)
        spans = self.spans[self.spans_at[r] : self.spans_at[r + 1]]
        for start, stop in spans.reshape(-1, 2).tolist():
            supervised_C[start + 1 : stop + 1] = True
        self.release_pages()
        return ids_C[:-1], shift_labels(ids_C, supervised_C)

    def number(self, r: int) -> int:
        """Return the line or record number of row r."""
        found = int(_values(self.batch.rows.column("number"), np.int64)[r])
        self.release_pages()
        return found

    def release_pages(self) -> None:
        """Stop counting the file's pages as memory of this process; the system may cache them.

        Otherwise the pages that were read add up to the whole file, which fills the memory of a
        process under a limit. Linux releases them at once; macOS takes it as advice.
        """
        if self.batch.file is not None and MADVISE is not None:
            where = ctypes.c_void_p(self.batch.file.address)
            MADVISE(where, ctypes.c_size_t(self.batch.file.size), mmap.MADV_DONTNEED)


Column = Callable[[_Chunk], np.ndarray]


class Table:
    """All rows of one source, in its order."""

    def __init__(self, name: str, batches: Sequence[Batch]) -> None:
        """Wrap record batches of `SCHEMA`.

        Args:
            name: of the source, as places show it: `train.jsonl`.
            batches: in order.
        """
        self.name = name
        self._chunks = [_Chunk.of(batch) for batch in batches if batch.rows.num_rows]
        counts = [chunk.batch.rows.num_rows for chunk in self._chunks]
        self._starts = np.cumsum([0, *counts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, of: Column, kind: type | str) -> np.ndarray:
        """Return a column for all rows, [rows of the table], in this dtype."""
        parts = []
        for chunk in self._chunks:
            parts.append(of(chunk).copy())  # a view would be paged in again
            chunk.release_pages()
        return np.concatenate([np.zeros(0, kind), *parts])

    def row(self, r: int) -> tuple[np.ndarray, Targets]:
        """Return (ids int32 [positions], targets) of row r."""
        chunk, r = self._find(r)
        return chunk.row(r)

    def place(self, r: int) -> str:
        """Return the place of row r: `train.jsonl:17`."""
        chunk, r = self._find(r)
        return f"{self.name}:{chunk.number(r)}"

    def _find(self, r: int) -> tuple[_Chunk, int]:
        index = int(np.searchsorted(self._starts, r, side="right")) - 1
        return self._chunks[index], r - int(self._starts[index])


def _view(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    return _values(column.values, np.int32), _values(column.offsets, np.int32)


class StoredRows:
    """Rows of one or several tables, in an order of their own; read as `Rows` is."""

    def __init__(self, tables: Sequence[Table], table_R: np.ndarray, row_R: np.ndarray) -> None:
        """Choose rows.

        Args:
            tables: the tables to choose from.
            table_R: int32 [R]: the table of each row.
            row_R: int64 [R]: its index in that table.
        """
        self._tables, self._table_R, self._row_R = tables, table_R, row_R

    @classmethod
    def of(cls, table: Table) -> StoredRows:
        """All rows of one table."""
        return cls([table], np.zeros(len(table), np.int32), np.arange(len(table), dtype=np.int64))

    @classmethod
    def joined(cls, parts: Iterable[StoredRows]) -> StoredRows:
        """The rows of all parts, one part after the other."""
        parts = list(parts)
        tables = [table for part in parts for table in part._tables]
        firsts = np.cumsum([0, *(len(part._tables) for part in parts)])
        table_R = [part._table_R + first for part, first in zip(parts, firsts[:-1], strict=True)]
        return cls(
            tables,
            np.concatenate([np.zeros(0, np.int32), *table_R], dtype=np.int32),
            np.concatenate([np.zeros(0, np.int64), *(part._row_R for part in parts)]),
        )

    def where(self, chosen_R: np.ndarray) -> StoredRows:
        """The rows that a mask marks, or that indices name."""
        return StoredRows(self._tables, self._table_R[chosen_R], self._row_R[chosen_R])

    def _column(self, of: Column, kind: type | str) -> np.ndarray:
        """Return a column of the tables for the rows chosen here."""
        found = np.zeros(len(self), kind)
        for index, table in enumerate(self._tables):
            here = self._table_R == index
            found[here] = table.column(of, kind)[self._row_R[here]]
        return found

    def __len__(self) -> int:
        return len(self._row_R)

    @cached_property
    def lengths_R(self) -> np.ndarray:
        """int64 [R]: positions of each row."""
        return self._column(_Chunk.lengths, np.int64)

    @property
    def content_R(self) -> np.ndarray:
        """uint64 [R]: content hash of each row's record."""
        return self._column(_Chunk.content, np.uint64)

    @cached_property
    def tokens(self) -> int:
        """Number of input positions of all rows."""
        return int(self.lengths_R.sum())

    @cached_property
    def supervised(self) -> int:
        """Number of positions of all rows that count in the loss."""
        return int(self._column(_Chunk.supervised, np.int64).sum())

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the content of all rows; the same on every machine."""
        return hashlib.sha256(self._column(_Chunk.tokens, "S16").tobytes()).hexdigest()

    def row(self, r: int) -> tuple[np.ndarray, Targets]:
        """Return (ids int32 [length of the row], targets) of row r."""
        return self._tables[int(self._table_R[r])].row(int(self._row_R[r]))

    def take(self, order: Iterable[int]) -> Rows:
        """The rows at these indices, in this order and in memory."""
        return Rows.from_pairs(self.row(int(r)) for r in order)

    def place(self, r: int) -> str:
        """Return the place that row r comes from: `train.jsonl:17`."""
        return self._tables[int(self._table_R[r])].place(int(self._row_R[r]))

    @property
    def places(self) -> Sequence[str]:
        """The place that each row comes from."""
        return _Places(self)


class _Places(Sequence[str]):
    """Places of rows, each formatted only when it is read."""

    def __init__(self, rows: StoredRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._rows.place(r) for r in range(*index.indices(len(self)))]
        return self._rows.place(range(len(self))[index])
