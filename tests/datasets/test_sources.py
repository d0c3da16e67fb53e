"""Where data are found, where they are not looked for, and what a search says in vain."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_local.datasets.files import Record
from qwen_local.datasets.sources import Source, locate
from qwen_local.errors import DatasetError

# Not an import statement, for which type checkers find the root folder of sample data.
hugging_face: Any = importlib.import_module("datasets")

ROW = b'{"text": "Hi"}\n'
KINDS = ".jsonl, .json, .csv, .parquet"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hugging_face, "load_dataset_builder", unwanted)


def unwanted(name: str) -> None:
    pytest.fail(f"the hub was asked for {name}")


def put(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(ROW)


def names_of(found: tuple[Source, Source | None]) -> tuple[str, str | None]:
    train, evaluation = found
    return train.name, evaluation.name if evaluation else None


def message_of(train: str, eval: str | None = None) -> str:
    with pytest.raises(DatasetError) as caught:
        locate(train, eval)
    return str(caught.value)


# --- here ---


def test_a_file_is_known_by_its_hash() -> None:
    put("a.jsonl")
    source, evaluation = locate("a.jsonl", None)
    assert evaluation is None
    assert (source.name, source.sha256, source.commit) == (
        "a.jsonl",
        hashlib.sha256(ROW).hexdigest(),
        None,
    )
    assert list(source.read()) == [Record("a.jsonl:1", {"text": "Hi"})]


def test_the_home_folder_may_be_written_short(monkeypatch: pytest.MonkeyPatch) -> None:
    put("home/a.jsonl")
    monkeypatch.setenv("HOME", "home")
    assert locate("~/a.jsonl", None)[0].name == "home/a.jsonl"


def test_a_folder_gives_train_and_evaluation_rows() -> None:
    put("one/train.jsonl", "one/valid.jsonl", "one/test.jsonl")
    put("two/train.parquet", "two/validation.csv", "two/notes.md")
    put("three/train.json", "three/test.jsonl")
    put("four/train.jsonl", "four/eval.JSONL")
    assert names_of(locate("one", None)) == ("one/train.jsonl", "one/valid.jsonl")
    assert names_of(locate("two", None)) == ("two/train.parquet", "two/validation.csv")
    assert names_of(locate("three", None)) == ("three/train.json", None)
    assert names_of(locate("four", None)) == ("four/train.jsonl", "four/eval.JSONL")


def test_evaluation_rows_may_come_from_elsewhere() -> None:
    put("one/train.jsonl", "one/valid.jsonl", "b.jsonl", "two/valid.jsonl")
    assert names_of(locate("one", "b.jsonl")) == ("one/train.jsonl", "b.jsonl")
    assert names_of(locate("b.jsonl", "two")) == ("b.jsonl", "two/valid.jsonl")


def test_a_folder_that_does_not_say_which_file_is_refused() -> None:
    put("both/train.jsonl", "both/train.csv", "none/data.jsonl", "train/train.jsonl")
    assert message_of("both") == (
        f"both: expected one file named train ({KINDS}); found train.csv, train.jsonl\n\n"
        "hint: keep one of them"
    )
    assert message_of("none", "train") == (
        f"none: expected one file named train ({KINDS}); found none\n\n"
        "hint: rename the file, or name it instead of its folder\n\n"
        f"train: expected one file named valid or validation or eval ({KINDS}); found none\n\n"
        "hint: rename the file, or name it instead of its folder"
    )


def test_a_file_of_another_kind_is_refused() -> None:
    put("a.txt")
    assert message_of("a.txt") == (
        f"a.txt: expected a file of a known kind ({KINDS})\n\n"
        'hint: write one JSON object a line into a .jsonl file, such as {"text": "..."}'
    )


RELATIVE = "\n\nhint: a relative path counts from the folder that the command runs in"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/tarin.jsonl", "data/tarin.jsonl: no such file or folder\n\n"
                             "hint: did you mean data/train.jsonl?"),
        ("data/other", "data/other: no such file or folder" + RELATIVE),
        ("nowhere/a.jsonl", "nowhere/a.jsonl: no such file or folder" + RELATIVE),
        ("./nowhere", "./nowhere: no such file or folder" + RELATIVE),
        ("/nowhere/to/be", "/nowhere/to/be: no such file or folder"),
        ("a b/c", "a b/c: no such file or folder" + RELATIVE),
        (
            "alpaca",
            "alpaca: no such file or folder, and not the id of a data set on the hub either "
            "(owner/name)" + RELATIVE,
        ),
        ("x" * 300, f"{'x' * 300}: cannot be read: File name too long"),
    ],
)  # fmt: skip
def test_what_looks_like_a_path_is_never_looked_up_on_the_hub(name: str, message: str) -> None:
    put("data/train.jsonl")
    assert message_of(name) == message


def test_every_missing_source_is_told() -> None:
    assert message_of("a.jsonl", "b.jsonl") == (
        f"a.jsonl: no such file or folder{RELATIVE}\n\nb.jsonl: no such file or folder{RELATIVE}"
    )


def test_what_exists_here_wins_over_the_hub() -> None:
    put("owner/name/train.jsonl")
    assert names_of(locate("owner/name", None)) == ("owner/name/train.jsonl", None)


# --- on the hub ---


def hub(monkeypatch: pytest.MonkeyPatch, **splits: list[dict[str, str]]) -> list[str]:
    """A hub that has one data set; returns the list of what it was asked for."""
    asked: list[str] = []

    def builder(name: str) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(
            hash="c0ffee",
            download_and_prepare=lambda: None,
            as_dataset=lambda: {
                split: hugging_face.Dataset.from_list(rows) for split, rows in splits.items()
            },
        )

    monkeypatch.setattr(hugging_face, "load_dataset_builder", builder)
    return asked


def test_a_data_set_on_the_hub_gives_its_splits_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "1"}, {"text": "2"}]
    asked = hub(monkeypatch, train=rows, validation=rows[:1], test=rows)
    train, evaluation = locate("owner/name", None)
    assert evaluation is not None
    assert (train.name, train.sha256, train.commit) == ("owner/name[train]", None, "c0ffee")
    assert evaluation.name == "owner/name[validation]"
    assert asked == ["owner/name"]
    assert list(train.read()) == [
        Record("owner/name[train]:1", {"text": "1"}),
        Record("owner/name[train]:2", {"text": "2"}),
    ]


def test_a_data_set_without_the_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, test=[{"text": "1"}], more=[{"text": "1"}])
    assert message_of("owner/name") == (
        "owner/name: expected a split named train; found test, more\n\n"
        "hint: save the split that you want as a .jsonl file"
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("Couldn't reach it"),
            "owner/name: not here, not in the cache, and the hub cannot be reached\n\n"
            "hint: check the network; or, on a machine that has one, hf download owner/name "
            "--repo-type dataset --local-dir FOLDER, and name a file of it",
        ),
        (
            hugging_face.exceptions.DatasetNotFoundError("It doesn't exist.\nAt all."),
            "owner/name: cannot be loaded from the hub: It doesn't exist.\n\n"
            "hint: download the data set, and name its file or folder",
        ),
        (
            KeyError(),
            "owner/name: cannot be loaded from the hub: KeyError\n\n"
            "hint: download the data set, and name its file or folder",
        ),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise error

    monkeypatch.setattr(hugging_face, "load_dataset_builder", refuse)
    assert message_of("owner/name") == message


def test_offline_the_hub_is_not_asked(tmp_path: Path) -> None:
    """In a process of its own, as the libraries read their settings when they are imported."""
    code = "from qwen_local.datasets.sources import locate; locate('owner/name', None)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.stderr.split("DatasetError: ")[1] == (
        "owner/name: not here, not in the cache, and HF_HUB_OFFLINE forbids to ask the hub\n\n"
        "hint: unset HF_HUB_OFFLINE once, or name a local file\n"
    )
