"""The folder that a recipe leaves: whole or as it was, and never in the place of a source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_local.errors import JobError
from qwen_local.recipes.output import RecipeSummary, Row, balance, check_output, write_rows

ROW: Row = {"prompt": "Größe?", "completion": "Yes"}
LINE = '{"prompt": "Größe?", "completion": "Yes"}\n'


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in folder.iterdir()}


def test_both_files_are_written_in_utf_8(tmp_path: Path) -> None:
    write_rows(tmp_path / "a/b", [ROW, ROW], iter([ROW]))
    assert content(tmp_path / "a/b") == {"train.jsonl": 2 * LINE, "valid.jsonl": LINE}


def test_without_rows_for_evaluation_an_old_file_of_them_goes(tmp_path: Path) -> None:
    write_rows(tmp_path, [ROW], [ROW])
    (tmp_path / "notes.txt").write_text("mine")
    write_rows(tmp_path, [ROW, ROW], [])
    assert content(tmp_path) == {"train.jsonl": 2 * LINE, "notes.txt": "mine"}


def test_a_build_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    def failing() -> Iterator[Row]:
        yield ROW
        raise OSError(28, os.strerror(28))

    write_rows(tmp_path, [ROW], [ROW])
    with pytest.raises(OSError, match="No space left"):
        write_rows(tmp_path, [ROW, ROW], failing())
    assert content(tmp_path) == {"train.jsonl": LINE, "valid.jsonl": LINE}


@pytest.mark.parametrize("renames", [0, 1])
def test_a_power_cut_never_leaves_rows_of_two_builds_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    class PowerCut(BaseException):
        pass

    write_rows(tmp_path, [ROW], [ROW])
    replace = Path.replace
    done: list[Path] = []

    def cut(self: Path, target: Path) -> Path:
        if len(done) == renames:
            raise PowerCut
        done.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(PowerCut):
        write_rows(tmp_path, [ROW, ROW], [ROW, ROW])
    assert content(tmp_path) == {"train.jsonl": (1 + renames) * LINE}


def refused(folder: Path, *, overwrite: bool = False, sources: list[Path] | None = None) -> str:
    with pytest.raises(JobError) as error:
        check_output(folder, overwrite=overwrite, sources=sources or [])
    return str(error.value).replace(str(folder.parent), "here")


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    check_output(folder, overwrite=False, sources=[])
    (folder / "notes.txt").touch()
    assert refused(folder) == (
        "output: here/out is not empty\n\nhint: choose another folder with `output`, "
        "or replace its train.jsonl and valid.jsonl with `overwrite`"
    )
    check_output(folder, overwrite=True, sources=[])


def test_a_source_is_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "valid.jsonl").touch()
    (tmp_path / "link").symlink_to(folder / "valid.jsonl")
    assert refused(folder, overwrite=True, sources=[tmp_path / "link"]) == (
        "output: here/out/valid.jsonl is an input file\n\nhint: choose another folder with `output`"
    )
    check_output(folder, overwrite=True, sources=[Path("owner/name[train]")])


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(JobError) as error:
            check_output(folder, overwrite=True, sources=[])
        assert str(error.value) == (
            f"output: {file} is not a folder\n\nhint: choose another folder with `output`"
        )


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / ("n" * 300)).startswith(f"output: here/{'n' * 300}: File name too")


def test_a_summary_counts_labels_one_by_one_where_they_are_few() -> None:
    many = {f"label {n}": n for n in range(1, 31)}
    summary = RecipeSummary(
        output=Path("out"),
        rows={"train.jsonl": 465, "valid.jsonl": 1_002},
        labels={"train.jsonl": many, "valid.jsonl": balance(["No", *["Yes"] * 1_001])},
        left_out={"empty_text": 0, "not_drawn": 12_345},
    )
    assert str(summary) == (
        "out/train.jsonl: 465 rows (30 labels, 1 to 30 rows each)\n"
        "out/valid.jsonl: 1,002 rows (Yes 1,001, No 1)\n"
        "left out: not drawn 12,345"
    )
    assert summary.to_json()["labels"]["valid.jsonl"] == {"Yes": 1_001, "No": 1}
