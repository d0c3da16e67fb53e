"""Rows that are made once: by one core or several, in one go or in two, they are the same rows."""

from __future__ import annotations

import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_local.datasets import pool, row_builder
from qwen_local.datasets import prepare as module
from qwen_local.datasets.cache import COMPLETE, cache_folder
from qwen_local.datasets.formats import Example, Meta
from qwen_local.datasets.pool import in_order
from qwen_local.datasets.prepare import Prepared, prepare
from qwen_local.datasets.record_files import Record
from qwen_local.datasets.row_builder import TokenizeConfig
from qwen_local.datasets.sources import Source, SourceSpec
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import DatasetError, QwenLocalError

pytestmark = pytest.mark.slow

RECORDS, BLOCK, PART = 47, 5, 3
FIRST_PART = BLOCK * PART


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(row_builder, "BLOCK", BLOCK)
    monkeypatch.setattr(module, "PART", PART)
    write(RECORDS)


def write(records: int, *more: dict[str, Any]) -> None:
    rows = [
        {"prompt": f"{n}?", "completion": f"{n}, <|im_end|>." * (n % 7)} for n in range(records)
    ]
    lines = [json.dumps(row) for row in [*rows, *more]]
    Path("train.jsonl").write_text("\n".join(lines), encoding="utf-8")


def run(tokenizer: ChatTokenizer, **changes: Any) -> Prepared:
    settings: dict[str, Any] = {
        "train": [SourceSpec(name="train.jsonl")],
        "eval": [],
        "eval_fraction": 0.1,
        "max_length": 64,
        "overlong": "drop",
        "train_on": "assistant",
        "seed": 0,
    }
    given = settings | changes
    names = ("max_length", "overlong", "train_on", "thinking")
    options = {name: given.pop(name) for name in names if name in given}
    return prepare(TokenizeConfig(tokenizer=tokenizer, **options), **given)


def assert_the_same(a: Prepared, b: Prepared) -> None:
    assert a.report == b.report
    assert list(a.train_places) == list(b.train_places)
    assert list(a.eval_places) == list(b.eval_places)
    assert a.train.sha256 == b.train.sha256
    for r in range(len(a.train)):
        (mine, my_targets), (theirs, their_targets) = a.train.row(r), b.train.row(r)
        np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(my_targets.ids_T, their_targets.ids_T)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The records of every block that was made from here on."""
    blocks: list[int] = []
    make = row_builder.tokenize_block

    def counted(how: row_builder.TokenizeConfig, block: row_builder.Block) -> Any:
        blocks.append(len(block))
        return make(how, block)

    monkeypatch.setattr(module, "tokenize_block", counted)
    monkeypatch.setattr(pool, "ALONE", 10**6)
    return blocks


def test_a_second_time_nothing_is_made(tiny: ChatTokenizer, made: list[int]) -> None:
    first = run(tiny)
    assert sum(made) == RECORDS
    made.clear()
    assert_the_same(run(tiny), first)
    assert made == []


def test_rows_are_the_same_without_a_cache(
    tiny: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = run(tiny)
    monkeypatch.setattr(module, "PART", 10**6)
    monkeypatch.setenv("HF_DATASETS_CACHE", "elsewhere")
    assert_the_same(run(tiny), cached)
    assert not Path("elsewhere").exists()


def test_what_was_interrupted_is_gone_on_with(
    tiny: ChatTokenizer, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = vars(module)["tokenize_block"]

    def killed(how: row_builder.TokenizeConfig, block: row_builder.Block) -> Any:
        if len(made) == 2 * PART + 1:
            raise KeyboardInterrupt
        return counted(how, block)

    monkeypatch.setattr(module, "tokenize_block", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tiny)
    monkeypatch.setattr(module, "tokenize_block", counted)
    made.clear()
    again = run(tiny)
    assert sum(made) == RECORDS - 2 * FIRST_PART
    monkeypatch.setenv("HF_DATASETS_CACHE", "elsewhere")
    assert_the_same(run(tiny), again)


def flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("suffix", [".arrow", ".json"])
@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"no arrow", flipped])
def test_a_damaged_part_is_made_again(
    damage: Callable[[bytes], bytes], suffix: str, tiny: ChatTokenizer, made: list[int]
) -> None:
    first = run(tiny)
    parts = sorted(cache_folder().glob(f"*/rows-*{suffix}"))
    assert len(parts) == -(-RECORDS // FIRST_PART)
    whole = parts[1].read_bytes()
    parts[1].unlink()  # the rows of the first time are paged in from it
    parts[1].write_bytes(damage(whole))
    made.clear()
    assert_the_same(run(tiny), first)
    assert sum(made) == RECORDS - FIRST_PART


@pytest.mark.parametrize(
    "changes",
    [
        {"max_length": 63},
        {"overlong": "cut"},
        {"train_on": "last"},
        {"thinking": "drop"},
        {"train": [SourceSpec(name="train.jsonl", limit=46)]},
        {"train": [SourceSpec(name="train.jsonl", format="prompt")]},
    ],
)
def test_another_way_of_making_rows_is_another_cache(
    changes: dict[str, Any], tiny: ChatTokenizer, made: list[int]
) -> None:
    run(tiny)
    made.clear()
    run(tiny, **changes)
    assert sum(made) in (RECORDS, RECORDS - 1)


def test_other_content_is_another_cache_and_another_name_is_not(
    tiny: ChatTokenizer, made: list[int]
) -> None:
    run(tiny)
    made.clear()
    Path("moved.jsonl").write_bytes(Path("train.jsonl").read_bytes())
    moved = run(tiny, train=[SourceSpec(name="moved.jsonl")])
    assert made == []
    assert moved.train_places[0].startswith("moved.jsonl:")
    write(RECORDS + 1)
    run(tiny)
    assert sum(made) == RECORDS + 1


def test_another_seed_or_share_makes_nothing_anew(tiny: ChatTokenizer, made: list[int]) -> None:
    run(tiny)
    made.clear()
    run(tiny, seed=1, eval_fraction=0.3)
    assert made == []


def test_data_with_a_fault_are_told_and_not_kept(tiny: ChatTokenizer) -> None:
    write(RECORDS, {"prompt": "?", "completion": 1})
    for _ in range(2):
        with pytest.raises(DatasetError, match=f"train.jsonl:{RECORDS + 1}: completion: expected"):
            run(tiny)
    assert not list(cache_folder().glob(f"*/{COMPLETE}"))


def test_a_few_rows_are_not_worth_a_file(tiny: ChatTokenizer) -> None:
    write(FIRST_PART - BLOCK)
    run(tiny)
    assert not cache_folder().exists()


@pytest.mark.parametrize(
    "answered",
    [range(FIRST_PART), range(FIRST_PART, RECORDS), [*range(FIRST_PART), RECORDS - 1]],
    ids=["the last parts", "the first part", "a part between"],
)
def test_a_part_may_have_no_rows(answered: Iterable[int], tiny: ChatTokenizer) -> None:
    rows = [{"prompt": f"{n}?", "completion": "yes" * (n in answered)} for n in range(RECORDS)]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    first = run(tiny, eval_fraction=0)
    assert list(first.train_places) == [f"train.jsonl:{n + 1}" for n in answered]
    assert_the_same(run(tiny, eval_fraction=0), first)


def test_where_no_part_has_rows_the_reason_is_told_every_time(tiny: ChatTokenizer) -> None:
    rows = [{"prompt": f"{n}?", "completion": ""} for n in range(RECORDS)]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for _ in range(2):
        with pytest.raises(DatasetError) as raised:
            run(tiny)
        assert str(raised.value) == (
            "train.jsonl: expected at least one row to train on; dropped: 47 empty_answer"
        )


def test_a_part_in_the_place_of_another_is_made_again(tiny: ChatTokenizer) -> None:
    first = run(tiny)
    (folder,) = cache_folder().iterdir()
    for suffix in (".arrow", ".json"):
        (folder / f"rows-00001{suffix}").unlink()  # rows are paged in from it
        shutil.copy(folder / f"rows-00002{suffix}", folder / f"rows-00001{suffix}")
    assert_the_same(run(tiny), first)


def test_pandas_stays_out_and_no_file_stays_open(tiny: ChatTokenizer) -> None:
    code = """
import sys
from pathlib import Path
from tokenizers import Tokenizer
from qwen_local.datasets import prepare, row_builder
from qwen_local.datasets.sources import SourceSpec
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.embedded import tiny_model_path

row_builder.BLOCK, prepare.PART = 5, 1
for _ in range(2):
    prepared = prepare.prepare(
        row_builder.TokenizeConfig(
            tokenizer=ChatTokenizer.load(tiny_model_path()),
            max_length=64, overlong="drop", train_on="assistant",
        ),
        train=[SourceSpec(name="train.jsonl")], eval=[], eval_fraction=0.1, seed=0,
    )
prepared.train.take(range(len(prepared.train)))
files = [str(link.resolve()) for link in Path("/proc/self/fd").glob("*")]
print("pandas" in sys.modules, list(prepared.train_places)[0], sum("arrow" in f for f in files))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False train.jsonl:2 0\n", done.stderr


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is held")
def test_rows_that_were_taken_are_not_held(tiny: ChatTokenizer) -> None:
    run(tiny)
    prepared = run(tiny)
    mapped = pages_held()
    assert mapped and not any(mapped)
    taken = prepared.train.take(range(len(prepared.train)))
    assert taken.supervised == prepared.train.supervised
    assert not any(pages_held())
    again = prepared.train.take(range(len(prepared.train)))
    np.testing.assert_array_equal(again.ids_T, taken.ids_T)


def pages_held() -> list[int]:
    """KiB of each file of the cache that count as this process's."""
    found, ours = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.split()[0].endswith(":"):
            if ours and line.startswith("Rss:"):
                found.append(int(line.split()[1]))
        else:
            ours = line.endswith(".arrow")
    return found


def test_hugging_face_reads_a_part(tiny: ChatTokenizer) -> None:
    run(tiny)
    part = sorted(cache_folder().glob("*/*.arrow"))[0]
    columns = importlib.import_module("datasets").Dataset.from_file(str(part))
    assert columns.column_names == ["ids", "spans", "content", "tokens", "number"]
    assert columns["number"][:3] == [2, 3, 4]  # the first answer is empty


# --- several processes ---


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """`in_order` with two processes from the second block on."""
    monkeypatch.setattr(pool, "ALONE", 1)
    yield functools.partial(in_order, processes=2)


def test_several_processes_make_the_same_rows(
    tiny: ChatTokenizer, several: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run(tiny)
    monkeypatch.setattr(module, "in_order", several)
    monkeypatch.setenv("HF_DATASETS_CACHE", "elsewhere")
    assert_the_same(run(tiny), alone)


def test_a_process_that_is_killed_is_told(several: Callable[..., Any]) -> None:
    with pytest.raises(QwenLocalError) as caught:
        list(several(functools.partial(_killed_unless, os.getpid()), range(9)))
    assert str(caught.value) == (
        "a process that prepared the data has ended; memory may have run out (or a program "
        'of your own starts its work outside of `if __name__ == "__main__":`)'
    )


def _killed_unless(parent: int, _: int) -> None:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


# --- what could go wrong with it ---


def test_two_splits_of_one_commit_have_their_own_rows(tiny: ChatTokenizer) -> None:
    def rows(split: str) -> list[str]:
        def records() -> Any:
            for n in range(FIRST_PART + 1):
                yield Record(f"o/n[{split}]:{n + 1}", {"prompt": f"{n}?", "completion": split})

        source = Source(name=f"o/n[{split}]", records=records, sha256=None, commit="abc")
        source_rows = module.read_source(source, how(tiny), quiet=True)
        return [tiny.decode(source_rows.table.row(0)[0].tolist())]

    assert rows("train") != rows("validation")
    assert len(list(cache_folder().glob(f"*/{COMPLETE}"))) == 2


def how(tokenizer: ChatTokenizer) -> row_builder.TokenizeConfig:
    return row_builder.TokenizeConfig(
        tokenizer=tokenizer,
        max_length=64,
        overlong="drop",
        train_on="assistant",
        thinking="auto",
    )


def test_a_cache_that_cannot_be_written_costs_only_time(
    tiny: ChatTokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = run(tiny)
    Path("file").touch()
    monkeypatch.setenv("HF_DATASETS_CACHE", "file")
    with caplog.at_level("WARNING"):
        assert_the_same(run(tiny), kept)
    [said] = [record.message for record in caplog.records]
    assert said.startswith("rows are not cached: ")


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(
    tiny: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = row_builder.tokenize_block

    def changing(making: row_builder.TokenizeConfig, block: row_builder.Block) -> Any:
        write(RECORDS + 1)
        return make(making, block)

    monkeypatch.setattr(module, "tokenize_block", changing)
    monkeypatch.setattr(pool, "ALONE", 10**6)
    with pytest.raises(DatasetError) as caught:
        run(tiny)
    assert str(caught.value) == (
        "train.jsonl: it was changed while it was read\n\n"
        "hint: run the command again when it is complete"
    )
    assert not cache_folder().exists()


def test_a_template_that_tells_the_time_is_not_kept(tiny: ChatTokenizer) -> None:
    tokenizer, template, variables = tiny.__reduce__()[1]
    dated = ChatTokenizer(tokenizer, template + "{# strftime_now #}", variables)
    run(dated)
    assert not cache_folder().exists()


def test_a_block_ends_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_builder, "BLOCK_SIZE", 25)
    examples = [
        Example(
            where=f"a:{n}",
            meta=Meta(id=None, category=None),
            format="text",
            content="x" * 10,
            tools=(),
            untrained=frozenset(),
            empty=False,
            ignored=(),
            notes=(),
        )
        for n in range(7)
    ]
    assert [len(block) for block in row_builder.blocks(examples)] == [3, 3, 1]
