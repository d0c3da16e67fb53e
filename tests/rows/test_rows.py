"""Rows and their targets: what they hold, and the digest that a run is known by."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_local.datasets.row_store import Batch, BatchBuilder, StoredRows, Table
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import IGNORE, Targets, shift_labels

N = IGNORE


def three() -> Rows:
    targets = ([N, 3], [5, N, 7], [9])
    ids = ([1, 2], [4, 5, 6], [8])
    return Rows.from_pairs((i, Targets.of(t)) for i, t in zip(ids, targets, strict=True))


def test_only_what_the_assistant_wrote_is_supervised() -> None:
    ids = [1, 2, 3, 4, 5, 6, 7]
    supervised = [False, False, False, True, True, False, False]
    assert shift_labels(ids, supervised).ids_T.tolist() == [N, N, 4, 5, N, N]


@pytest.mark.parametrize("length", [0, 1])
def test_a_conversation_without_a_second_token_has_no_target(length: int) -> None:
    assert len(shift_labels([1] * length, [True] * length)) == 0


def test_rows_are_taken_with_their_targets() -> None:
    rows = three().take([2, 0, 2])
    assert rows.ids_T.tolist() == [8, 1, 2, 8]
    assert rows.targets.ids_T.tolist() == [9, N, 3, 9]
    assert rows.offsets.tolist() == [0, 1, 3, 4]
    assert (len(rows), rows.tokens, rows.supervised) == (3, 4, 3)
    ids, targets = three().row(1)
    assert (ids.tolist(), targets.ids_T.tolist()) == ([4, 5, 6], [5, N, 7])


def test_targets_are_selected_and_padded() -> None:
    targets = three().targets
    assert targets.supervised_N.tolist() == [1, 2, 4, 5]
    assert targets[targets.supervised_N].ids_T.tolist() == [3, 5, 7, 9]
    padded = targets[:2].padded(4)
    assert padded.ids_T.tolist() == [N, 3, N, N]
    assert padded.ids_T.dtype == np.int32
    assert padded.supervised == 1


def test_no_rows_are_rows() -> None:
    rows = Rows.from_pairs([])
    assert (len(rows), rows.tokens, rows.supervised) == (0, 0, 0)
    assert rows.ids_T.dtype == rows.targets.ids_T.dtype == np.int32


def test_digests_are_those_that_checkpoints_hold() -> None:
    """Computed at commit d8fa3b6, before targets were a value."""
    assert three().sha256 == "f9e21148038cdac10130631a01f94e6bb898d4becd321b3237addfc5a1992612"
    empty = "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"
    assert Rows.from_pairs([]).sha256 == empty
    builder = BatchBuilder.empty()
    builder.add([1, 2, 3], [False, False, True], 7, 1)
    builder.add([4, 5, 6, 7], [True, True, False, True], 8, 2)
    stored = StoredRows.of(Table("a.jsonl", [Batch(builder.batch())]))
    assert stored.sha256 == "44670bf29d5bc1322ca571f9d527307d9e03926979325a229b6e38f41bd9fa54"
    assert stored.take([1]).targets.ids_T.tolist() == [5, N, 7]
