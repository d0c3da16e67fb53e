"""Rows in an Arrow table: in memory, or in files that the system pages in as they are read.

Shapes: R = rows, C = conversations' tokens in one row (its positions and the token after the last).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from qwen_local.rows import IGNORE, Rows

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
        columns = [_lists(self.ids), _lists(self.spans), self.content, self.tokens, self.number]
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, field.type)
            for column, field in zip(columns, SCHEMA, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _lists(parts: Sequence[np.ndarray]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int32)
    values = np.concatenate([np.zeros(0, np.int32), *parts])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Views into one record batch; nothing is copied."""

    ids: np.ndarray
    ids_at: np.ndarray
    """int32 [rows + 1]"""
    spans: np.ndarray
    spans_at: np.ndarray


class Table:
    """All rows of one source, in its order."""

    def __init__(self, name: str, batches: Sequence[pa.RecordBatch]) -> None:
        """Wrap record batches of `SCHEMA`.

        Args:
            name: of the source, as it stands in places: `train.jsonl`.
            batches: in order.
        """
        batches = [batch for batch in batches if batch.num_rows]
        self.name = name
        self._chunks = [
            _Chunk(*_view(batch.column("ids")), *_view(batch.column("spans"))) for batch in batches
        ]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)], dtype=np.int64)
        self.content_R = _flat([b.column("content").to_numpy() for b in batches], np.uint64)
        self.number_R = _flat([b.column("number").to_numpy() for b in batches], np.int64)
        self.tokens_R = _flat([_bytes(batch.column("tokens")) for batch in batches], "S16")
        lengths = [np.diff(chunk.ids_at) - 1 for chunk in self._chunks]
        self.lengths_R = _flat(lengths, np.int64)
        self.supervised_R = _flat([_supervised(chunk) for chunk in self._chunks], np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, targets) of row r, each int32 [positions]."""
        index = int(np.searchsorted(self._starts, r, side="right")) - 1
        chunk, r = self._chunks[index], r - int(self._starts[index])
        ids_C = chunk.ids[chunk.ids_at[r] : chunk.ids_at[r + 1]]
        targets = np.full(len(ids_C) - 1, IGNORE, np.int32)
        spans = chunk.spans[chunk.spans_at[r] : chunk.spans_at[r + 1]]
        for start, stop in spans.reshape(-1, 2).tolist():
            targets[start:stop] = ids_C[start + 1 : stop + 1]
        return ids_C[:-1], targets


def _view(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    return column.values.to_numpy(), column.offsets.to_numpy()


def _bytes(column: pa.FixedSizeBinaryArray) -> np.ndarray:
    """S16 [rows]: a view."""
    data = np.frombuffer(column.buffers()[1], "S16")
    return data[column.offset : column.offset + len(column)]


def _flat(parts: Sequence[np.ndarray], kind: type | str) -> np.ndarray:
    return np.concatenate([np.zeros(0, kind), *parts])


def _supervised(chunk: _Chunk) -> np.ndarray:
    signed = chunk.spans.astype(np.int64)
    signed[::2] *= -1  # each span counts stop - start; every row has at least one
    return np.add.reduceat(signed, chunk.spans_at[:-1])


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
        return cls(
            tables,
            _flat([p._table_R + f for p, f in zip(parts, firsts[:-1], strict=True)], np.int32),
            _flat([part._row_R for part in parts], np.int64),
        )

    def where(self, chosen_R: np.ndarray) -> StoredRows:
        """The rows that are marked, or named by their index."""
        return StoredRows(self._tables, self._table_R[chosen_R], self._row_R[chosen_R])

    def _gathered(self, name: str, kind: type | str) -> np.ndarray:
        """A column of the tables, for the rows chosen here."""
        found = np.zeros(len(self), kind)
        for index, table in enumerate(self._tables):
            here = self._table_R == index
            found[here] = getattr(table, name)[self._row_R[here]]
        return found

    def __len__(self) -> int:
        return len(self._row_R)

    @cached_property
    def lengths_R(self) -> np.ndarray:
        """int64 [R]: positions of each row."""
        return self._gathered("lengths_R", np.int64)

    @cached_property
    def content_R(self) -> np.ndarray:
        """uint64 [R]: hash of what the record of each row says."""
        return self._gathered("content_R", np.uint64)

    @cached_property
    def tokens(self) -> int:
        """Input positions of all rows."""
        return int(self.lengths_R.sum())

    @cached_property
    def supervised(self) -> int:
        """Positions of all rows that are trained."""
        return int(self._gathered("supervised_R", np.int64).sum())

    @cached_property
    def sha256(self) -> str:
        """Of all that is in them, in hex; the same on every machine."""
        return hashlib.sha256(self._gathered("tokens_R", "S16").tobytes()).hexdigest()

    def row(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, targets) of row r, each int32 [length of the row]."""
        return self._tables[int(self._table_R[r])].row(int(self._row_R[r]))

    def take(self, order: Iterable[int]) -> Rows:
        """The rows at these indices, in this order and in memory."""
        return Rows.from_pairs(self.row(int(r)) for r in order)

    def place(self, r: int) -> str:
        """Where row r comes from: `train.jsonl:17`."""
        table = self._tables[int(self._table_R[r])]
        return f"{table.name}:{table.number_R[self._row_R[r]]}"

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
