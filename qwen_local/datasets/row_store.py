"""Rows in an Arrow table: in memory, or in files that the system pages in as they are read.

Shapes: R = rows, C = conversations' tokens in one row (its positions and the token after the last).
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

from qwen_local.rows.rows import IGNORE, Rows

SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),  # [C]
        ("spans", pa.list_(pa.int32())),  # [2 x n]: positions start..stop whose next is trained
        ("content", pa.uint64()),  # hash of what the row's record says
        ("tokens", pa.binary(16)),  # hash of ids and spans
        ("number", pa.int64()),  # line or record of the source
    ]
)


@dataclass(slots=True)
class RowsMade:
    """Rows on their way into a table."""

    ids: list[np.ndarray]
    spans: list[np.ndarray]
    content: list[int]
    tokens: list[bytes]
    number: list[int]

    @classmethod
    def empty(cls) -> RowsMade:
        """None yet."""
        return cls([], [], [], [], [])

    def add(self, ids: Sequence[int], trained: Sequence[bool], content: int, number: int) -> None:
        """Take a row in.

        Args:
            ids: tokens, shape [C]; the last of them is trained.
            trained: shape [C].
            content: hash of what the record says.
            number: its line.
        """
        ids_C = np.asarray(ids, np.int32)
        # Where trained turns to untrained and back, among the positions: token t + 1 is the target
        # of position t.
        edges = np.flatnonzero(np.diff(np.asarray(trained, np.int8)[1:], prepend=0, append=0))
        spans = edges.astype(np.int32)
        digest = hashlib.blake2b(ids_C.astype("<i4").data, digest_size=16)
        digest.update(spans.astype("<i4").data)
        self.ids.append(ids_C)
        self.spans.append(spans)
        self.content.append(content)
        self.tokens.append(digest.digest())
        self.number.append(number)

    def batch(self) -> pa.RecordBatch:
        """The rows as Arrow holds them."""
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
    """Rows as Arrow holds them, and the whole file that is paged in where they lie in one."""

    rows: pa.RecordBatch
    file: pa.Buffer | None = None


MADVISE = ctypes.CDLL(None).madvise if hasattr(mmap, "MADV_DONTNEED") else None
"""The C library's; None on Windows. `mmap.mmap` has it, too, but keeps a file open for each."""


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
        """int64 [rows]: positions of each."""
        return (np.diff(self.ids_at) - 1).astype(np.int64)

    def supervised(self) -> np.ndarray:
        """int64 [rows]: positions of each that are trained."""
        signed = self.spans.astype(np.int64)
        signed[::2] *= -1  # each span counts stop - start; every row has at least one
        return np.add.reduceat(signed, self.spans_at[:-1])

    def content(self) -> np.ndarray:
        """uint64 [rows]: hash of what the record says."""
        return _values(self.batch.rows.column("content"), np.uint64)

    def tokens(self) -> np.ndarray:
        """S16 [rows]: hash of ids and spans."""
        return _values(self.batch.rows.column("tokens"), "S16")

    def row(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, targets) of row r, each int32 [positions]."""
        ids_C = self.ids[self.ids_at[r] : self.ids_at[r + 1]].copy()
        targets = np.full(len(ids_C) - 1, IGNORE, np.int32)
        spans = self.spans[self.spans_at[r] : self.spans_at[r + 1]]
        for start, stop in spans.reshape(-1, 2).tolist():
            targets[start:stop] = ids_C[start + 1 : stop + 1]
        self.let_go()
        return ids_C[:-1], targets

    def number(self, r: int) -> int:
        """Line or record of row r."""
        found = int(_values(self.batch.rows.column("number"), np.int64)[r])
        self.let_go()
        return found

    def let_go(self) -> None:
        """Count the pages that were read as the system's again, which may keep them at hand.

        They would add up to the whole file, and the memory of a process that is allowed only so
        much is full of them. Linux does so at once; macOS takes it as advice.
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
            name: of the source, as it stands in places: `train.jsonl`.
            batches: in order.
        """
        self.name = name
        self._chunks = [_Chunk.of(batch) for batch in batches if batch.rows.num_rows]
        counts = [chunk.batch.rows.num_rows for chunk in self._chunks]
        self._starts = np.cumsum([0, *counts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, of: Column, kind: type | str) -> np.ndarray:
        """What is said of every row, [rows of the table] in this dtype."""
        parts = []
        for chunk in self._chunks:
            parts.append(of(chunk).copy())  # a view would be paged in once more
            chunk.let_go()
        return np.concatenate([np.zeros(0, kind), *parts])

    def row(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, targets) of row r, each int32 [positions]."""
        chunk, r = self._find(r)
        return chunk.row(r)

    def place(self, r: int) -> str:
        """Where row r stands: `train.jsonl:17`."""
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
            tables: where they lie.
            table_R: int32 [R]: the table of each row.
            row_R: int64 [R]: its place in there.
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
        """The rows that are marked, or named by their index."""
        return StoredRows(self._tables, self._table_R[chosen_R], self._row_R[chosen_R])

    def _column(self, of: Column, kind: type | str) -> np.ndarray:
        """A column of the tables, for the rows chosen here."""
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
        """uint64 [R]: hash of what the record of each row says."""
        return self._column(_Chunk.content, np.uint64)

    @cached_property
    def tokens(self) -> int:
        """Input positions of all rows."""
        return int(self.lengths_R.sum())

    @cached_property
    def supervised(self) -> int:
        """Positions of all rows that are trained."""
        return int(self._column(_Chunk.supervised, np.int64).sum())

    @cached_property
    def sha256(self) -> str:
        """Of all that is in them, in hex; the same on every machine."""
        return hashlib.sha256(self._column(_Chunk.tokens, "S16").tobytes()).hexdigest()

    def row(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, targets) of row r, each int32 [length of the row]."""
        return self._tables[int(self._table_R[r])].row(int(self._row_R[r]))

    def take(self, order: Iterable[int]) -> Rows:
        """The rows at these indices, in this order and in memory."""
        return Rows.from_pairs(self.row(int(r)) for r in order)

    def place(self, r: int) -> str:
        """Where row r comes from: `train.jsonl:17`."""
        return self._tables[int(self._table_R[r])].place(int(self._row_R[r]))

    @property
    def places(self) -> Sequence[str]:
        """Where every row comes from."""
        return _Places(self)


class _Places(Sequence[str]):
    """Places that are only written when they are asked for."""

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
