"""What all results have in common."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from benchmarks.result import without_places, write


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder, in it a working folder, and a temporary one that is reached by a link."""
    (tmp_path / "José" / "qwen").mkdir(parents=True)
    (tmp_path / "real").mkdir()
    (tmp_path / "tmp").symlink_to("real")
    monkeypatch.setenv("HOME", str(tmp_path / "José"))
    monkeypatch.chdir(tmp_path / "José" / "qwen")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def test_a_result_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    home, run = tmp_path / "José", tmp_path / "tmp" / "tmp1"
    result = {
        "command": f"python --python trl={home}/trl/bin/python --data {home}/qwen/data.json",
        "reports": [{"settings": {"output_dir": f"{run}/turn/out", "fewer": [str(run)]}}],
        "why": f"one\n{tmp_path}/real/tmp1/turn: no room\nin {home}",
        "cache": f"{tmp_path}/real/else",
        "other": f"{home}-2",
    }
    write(result, "result.json", run)
    assert json.loads((home / "qwen" / "result.json").read_text()) == {
        "command": "python --python trl=~/trl/bin/python --data ./data.json",
        "reports": [{"settings": {"output_dir": "<scratch>/turn/out", "fewer": ["<scratch>"]}}],
        "why": "one\n<scratch>/turn: no room\nin ~",
        "cache": "<tmp>/else",
        "other": f"{home}-2",
    }


def test_a_root_is_nobody_s_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert without_places("/usr/bin, 3 / 4") == "/usr/bin, 3 / 4"


def test_a_value_that_is_no_number_is_null(tmp_path: Path) -> None:
    write({"value": float("nan"), "holds": False}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text("utf-8")) == {"value": None, "holds": False}
    assert "NaN" not in (tmp_path / "r.json").read_text("utf-8")
