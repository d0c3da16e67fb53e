"""The room that a run needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from qwen_local.files import free_bytes
from qwen_local.training.disk import SMALL_FILES, disk_need


def test_r4_s_adapter_is_20_mb_and_its_checkpoints_with_moments_120_each() -> None:
    """10,092,544 parameters, keep 2: five checkpoints, twice two layouts, a log of 94 MB."""
    trainable, steps = 10_092_544, 234_813
    expected = 5 * 12 * trainable + 2 * 2 * 4 * trainable + 400 * steps + SMALL_FILES
    assert disk_need(trainable, keep=2, steps=steps) == expected
    assert disk_need(trainable, keep=3, steps=steps) - expected == 12 * trainable


def test_losses_of_evaluation_rows_take_four_bytes_each_in_two_files_up_to_a_limit() -> None:
    def more(rows: int, evaluations: int) -> int:
        without = disk_need(1, keep=1, steps=1)
        return disk_need(1, keep=1, steps=1, eval_rows=rows, evaluations=evaluations) - without

    assert more(100, 20) == 2 * 4 * 100 * 20
    assert more(100_000, 100) == more(10**9, 9) == 2 * 8 * 2**20


def test_room_is_that_of_the_folder_which_is_there(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert abs(free_bytes(tmp_path / "runs" / "mine") - free) < 10**9
