"""Where data are found, where they are not looked for, and what a search says in vain."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_local.datasets.formats import Example
from qwen_local.datasets.record_files import Record
from qwen_local.datasets.sources import Source, SourceSpec, locate
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


def find(train: str, eval: str | None = None, **how: Any) -> tuple[Source, Source | None]:
    """The only source of the training rows, and that of the evaluation rows where there is one."""
    named = [] if eval is None else [SourceSpec(name=eval, **how)]
    [source], evaluation = locate([SourceSpec(name=train, **how)], named)
    assert len(evaluation) <= 1
    return source, evaluation[0] if evaluation else None


def names_of(found: tuple[Source, Source | None]) -> tuple[str, str | None]:
    train, evaluation = found
    return train.name, evaluation.name if evaluation else None


def message_of(train: str, eval: str | None = None, **how: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        find(train, eval, **how)
    return str(caught.value)


# --- here ---


def test_a_file_is_known_by_its_hash() -> None:
    put("a.jsonl")
    source, evaluation = find("a.jsonl")
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
    assert find("~/a.jsonl")[0].name == "home/a.jsonl"


def test_a_folder_gives_train_and_evaluation_rows() -> None:
    put("one/train.jsonl", "one/valid.jsonl", "one/test.jsonl")
    put("two/train.parquet", "two/validation.csv", "two/notes.md")
    put("three/train.json", "three/test.jsonl")
    put("four/train.jsonl", "four/eval.JSONL")
    assert names_of(find("one")) == ("one/train.jsonl", "one/valid.jsonl")
    assert names_of(find("two")) == ("two/train.parquet", "two/validation.csv")
    assert names_of(find("three")) == ("three/train.json", None)
    assert names_of(find("four")) == ("four/train.jsonl", "four/eval.JSONL")


def test_evaluation_rows_may_come_from_elsewhere() -> None:
    put("one/train.jsonl", "one/valid.jsonl", "b.jsonl", "two/valid.jsonl")
    assert names_of(find("one", "b.jsonl")) == ("one/train.jsonl", "b.jsonl")
    assert names_of(find("b.jsonl", "two")) == ("b.jsonl", "two/valid.jsonl")


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
    assert names_of(find("owner/name")) == ("owner/name/train.jsonl", None)


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
    train, evaluation = find("owner/name")
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
        "hint: name the split that you want: owner/name[SPLIT]"
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


@pytest.mark.slow
def test_offline_the_hub_is_not_asked(tmp_path: Path) -> None:
    """In a process of its own, as the libraries read their settings when they are imported."""
    code = (
        "from qwen_local.datasets.sources import SourceSpec, locate\n"
        "locate([SourceSpec(name='owner/name')])"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.stderr.split("DatasetError: ")[1] == (
        "owner/name: not here, not in the cache, and HF_HUB_OFFLINE is set, so the Hub was not "
        "contacted\n\n"
        "hint: unset HF_HUB_OFFLINE once, or name a local file\n"
    )


def test_a_subset_and_a_split_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    hub(monkeypatch, train_sft=[{"text": "1"}], validation=[{"text": "2"}])
    builder = hugging_face.load_dataset_builder

    def ask(*name: str) -> Any:
        asked.append(name)
        return builder(name[0])

    monkeypatch.setattr(hugging_face, "load_dataset_builder", ask)
    assert names_of(find("owner/name[train_sft]")) == ("owner/name[train_sft]", None)
    assert names_of(find("owner/name:20240101.en[train_sft]", "owner/name:en")) == (
        "owner/name:20240101.en[train_sft]",
        "owner/name:en[validation]",
    )
    assert asked == [
        ("owner/name",),
        ("owner/name", "20240101.en"),
        ("owner/name", "en"),
    ]


def test_with_a_limit_a_data_set_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is asked for than the limit; of everything else nothing is fetched."""
    fetched = 0

    def rows() -> Any:
        nonlocal fetched
        while True:
            fetched += 1
            yield {"text": str(fetched)}

    def unwanted() -> None:
        pytest.fail("the whole data set was fetched")

    streamed = SimpleNamespace(
        hash="c0ffee",
        download_and_prepare=unwanted,
        as_streaming_dataset=lambda: {"train": rows()},
    )
    monkeypatch.setattr(hugging_face, "load_dataset_builder", lambda name: streamed)
    source, _ = find("owner/name", limit=3)
    assert [r.value for r in source.read() if isinstance(r, Record)] == [
        {"text": "1"},
        {"text": "2"},
        {"text": "3"},
    ]
    assert (source.name, source.commit, fetched) == ("owner/name[train]", "c0ffee", 3)


def test_a_weight_is_of_the_training_split_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, train=[{"text": "1"}], validation=[{"text": "2"}])
    [train], [evaluation] = locate([SourceSpec(name="owner/name", weight=3)])
    assert (train.weight, evaluation.weight) == (3, 1)


def test_a_stream_that_breaks_off_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield {"text": "1"}
        raise ConnectionError("gone")

    streamed = SimpleNamespace(hash="c0ffee", as_streaming_dataset=lambda: {"train": rows()})
    monkeypatch.setattr(hugging_face, "load_dataset_builder", lambda name: streamed)
    source, _ = find("owner/name", limit=3)
    first, last = source.read()
    assert first == Record("owner/name[train]:1", {"text": "1"})
    assert isinstance(last, tuple)
    assert str(last[0]) == (
        "owner/name[train]: not here, not in the cache, and the hub cannot be reached\n\n"
        "hint: check the network; or, on a machine that has one, hf download owner/name "
        "--repo-type dataset --local-dir FOLDER, and name a file of it"
    )


# --- how it is read ---


def test_a_source_knows_how_it_is_read() -> None:
    put("a.jsonl", "b.jsonl", "c/train.jsonl", "c/valid.jsonl")
    wanted = [
        SourceSpec(name="a.jsonl", weight=2.5, limit=7, format="text", columns={"text": "body"}),
        SourceSpec(name="b.jsonl"),
        SourceSpec(name="c", weight=3, limit=5),
    ]
    train, evaluation = locate(wanted)
    assert [(s.name, s.weight, s.limit, s.format, s.columns) for s in train] == [
        ("a.jsonl", 2.5, 7, "text", {"text": "body"}),
        ("b.jsonl", 1, None, "auto", {}),
        ("c/train.jsonl", 3, 5, "auto", {}),
    ]
    assert [(s.name, s.weight, s.limit) for s in evaluation] == [("c/valid.jsonl", 1, 5)]
    assert [s.name for s in locate(wanted, wanted[:2])[1]] == ["a.jsonl", "b.jsonl"]


def test_every_missing_one_of_several_sources_is_told() -> None:
    put("a.jsonl")
    with pytest.raises(DatasetError) as caught:
        locate(
            [SourceSpec(name="x.jsonl"), SourceSpec(name="a.jsonl")], [SourceSpec(name="/y.jsonl")]
        )
    assert [fault.where for fault in caught.value.faults] == ["x.jsonl", "/y.jsonl"]


def test_a_limit_counts_records_and_faults_alike() -> None:
    Path("a.jsonl").write_text('{"text": "1"}\n{\n{"text": "3"}\n{"text": "4"}\n')
    [first, fault, third] = find("a.jsonl", limit=3)[0].examples()
    assert isinstance(first, Example)
    assert isinstance(fault, tuple)
    assert isinstance(third, Example)
    assert (first.content, third.content) == ("1", "3")


def contents(source: Source) -> list[Any]:
    return [e.content if isinstance(e, Example) else list(map(str, e)) for e in source.examples()]


def test_columns_stand_for_the_keys_of_a_format() -> None:
    Path("a.csv").write_text("id,question,answer,prompt\n1,1?,2.,x\n")
    columns = {"prompt": "question", "completion": "answer"}
    [example] = find("a.csv", columns=columns, format="prompt")[0].examples()
    assert isinstance(example, Example)
    assert example.content == [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "2."},
    ]
    assert (example.meta.id, example.ignored) == ("1", ("prompt",))
    Path("a.jsonl").write_text('{"chat": [{"role": "assistant", "content": 5}], "text": "x"}\n')
    assert contents(find("a.jsonl", columns={"messages": "chat"}, format="messages")[0]) == [
        ["a.jsonl:1: chat[0].content: expected a string; found 5\n\nhint: write a string in quotes"]
    ]


def test_a_column_that_is_not_there_names_the_nearest() -> None:
    Path("a.csv").write_text("id,question,answer\n1,1?,2.\n")
    columns = {"prompt": "qestion", "completion": "x"}
    assert contents(find("a.csv", columns=columns, format="prompt")[0]) == [
        [
            "a.csv:2: qestion: expected the column that data.columns takes for prompt; "
            'it is missing\n\nhint: did you mean "question"?',
            "a.csv:2: x: expected the column that data.columns takes for completion; "
            "it is missing\n\nhint: the columns are id, question, answer",
        ]
    ]


def test_a_column_that_no_record_has_is_told_though_its_key_is_optional() -> None:
    lines = ['{"instruction": "1?", "output": "2."}\n', '{"instruction": "1?", "output": "2."}\n']
    columns = {"system": "sys", "input": "more"}
    Path("a.jsonl").write_text("".join(lines))
    *good, sys_fault, more_fault = find("a.jsonl", columns=columns, format="alpaca")[0].examples()
    assert len(good) == 2
    assert [str(f) for faults in (sys_fault, more_fault) for f in faults] == [  # type: ignore[union-attr]
        "a.jsonl:1: more: expected the column that data.columns takes for input; it is missing\n\n"
        "hint: the columns are instruction, output",
        "a.jsonl:1: sys: expected the column that data.columns takes for system; it is missing\n\n"
        "hint: the columns are instruction, output",
    ]
    lines.append('{"instruction": "1?", "output": "2.", "sys": "Be brief.", "more": "."}\n')
    Path("a.jsonl").write_text("".join(lines))
    found = list(find("a.jsonl", columns=columns, format="alpaca")[0].examples())
    assert [isinstance(e, Example) for e in found] == [True, True, True]


# --- compressed ---


def test_a_compressed_file_is_known_by_the_hash_of_what_lies_there() -> None:
    packed = gzip.compress(ROW)
    Path("train.jsonl.gz").write_bytes(packed)
    source, _ = find("train.jsonl.gz")
    assert source.sha256 == hashlib.sha256(packed).hexdigest()
    assert list(source.read()) == [Record("train.jsonl.gz:1", {"text": "Hi"})]
    assert names_of(find(".")) == ("train.jsonl.gz", None)


def test_a_compressed_file_of_another_kind_is_refused() -> None:
    put("a.parquet.gz", "a.gz")
    for name in ("a.parquet.gz", "a.gz"):
        assert message_of(name).startswith(f"{name}: expected a file of a known kind ({KINDS})")


def test_a_pipe_is_not_waited_for() -> None:
    Path("folder").mkdir()
    os.mkfifo("a.jsonl")
    os.mkfifo("folder/train.jsonl")
    message = (
        "expected a regular file; found a pipe\n\nhint: write the data to a file and use its path"
    )
    assert message_of("a.jsonl") == f"a.jsonl: {message}"
    assert message_of("folder") == f"folder/train.jsonl: {message}"
    assert message_of("/dev/null") == (
        "/dev/null: expected a regular file; found a device\n\n"
        "hint: write the data to a file and use its path"
    )
