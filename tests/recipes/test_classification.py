"""A table of texts and labels as rows that ask for the label."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_local.errors import DatasetError
from qwen_local.recipes.classification import ClassificationOptions, build
from qwen_local.recipes.output import RecipeSummary

Pair = tuple[str, str]


def made(
    tmp_path: Path, pairs: list[Pair], **given: Any
) -> tuple[RecipeSummary, list[Any], list[Any]]:
    """The summary and the rows of both files."""
    source = tmp_path / "texts.csv"
    with source.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *pairs])
    options = ClassificationOptions(**given)
    summary = build(str(source), tmp_path / "out", overwrite=True, options=options)
    files = [tmp_path / "out" / name for name in ("train.jsonl", "valid.jsonl")]
    read = [
        [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
        for file in files
    ]
    return summary, read[0], read[1]


def many(labels: str = "abc", each: int = 40) -> list[Pair]:
    return [(f"{label} number {n}", label) for label in labels for n in range(each)]


def test_a_row_asks_for_the_label_of_its_text(tmp_path: Path) -> None:
    pairs = [(" It rains,\nand rains. ", " weather "), ("Goal!", "sport")]
    _, train, _ = made(tmp_path, pairs, eval_fraction=0, instruction="One of {categories}?")
    assert sorted(train, key=lambda row: str(row["completion"])) == [
        {"prompt": "One of sport, weather?\n\nGoal!", "completion": "sport"},
        {"prompt": "One of sport, weather?\n\nIt rains,\nand rains.", "completion": "weather"},
    ]


def test_each_label_has_the_rows_asked_for_on_each_side(tmp_path: Path) -> None:
    summary, train, valid = made(tmp_path, many(), per_category=30)
    assert Counter(row["completion"] for row in train) == {"a": 27, "b": 27, "c": 27}
    assert Counter(row["completion"] for row in valid) == {"a": 3, "b": 3, "c": 3}
    assert summary.left_out["not_drawn"] == 30
    assert summary.notes == []


def test_a_label_with_too_few_texts_is_reported(tmp_path: Path) -> None:
    summary, _, _ = made(tmp_path, [*many("ab"), *many("c", 7)], per_category=40)
    assert summary.notes == ["1 of 3 labels have fewer than 40 texts; 'c' has the fewest: 7"]


def test_the_order_of_the_table_does_not_matter(tmp_path: Path) -> None:
    pairs = [*many(), ("a number 1", "b"), ("a number 2", "a")]
    shuffled = random.Random(0).sample(pairs, len(pairs))
    assert made(tmp_path, pairs, per_category=20) == made(tmp_path, shuffled, per_category=20)


def test_another_seed_draws_other_texts(tmp_path: Path) -> None:
    assert made(tmp_path, many(), per_category=9) != made(tmp_path, many(), per_category=9, seed=1)


def test_a_text_with_two_labels_is_left_out_and_one_that_repeats_is_taken_once(
    tmp_path: Path,
) -> None:
    pairs = [("both", "a"), ("both", "b"), ("both", "a"), ("one", "a"), ("one", "a"), ("two", "b")]
    summary, train, _ = made(tmp_path, [*pairs, ("", "a"), (" ", "b"), ("one", "")])
    taken = {row["prompt"].rpartition("\n")[2]: row["completion"] for row in train}
    assert (taken, len(train)) == ({"one": "a", "two": "b"}, 2)
    assert summary.left_out == {
        "empty_text": 2,
        "empty_label": 1,
        "contradictory": 3,
        "repeated": 1,
        "not_drawn": 0,
    }


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(st.tuples(st.sampled_from(["", "x", "y", "z"]), st.sampled_from("ab"))),
    each=st.integers(1, 3),
)
def test_every_row_is_accounted_for(tmp_path: Path, pairs: list[Pair], each: int) -> None:
    every = [("left", "a"), ("right", "b"), *pairs]
    summary, train, valid = made(tmp_path, every, per_category=each, eval_fraction=0.4)
    assert len(train) + len(valid) + sum(summary.left_out.values()) == len(every)
    assert {row["prompt"] for row in train} & {row["prompt"] for row in valid} == set()


def test_numbers_are_labels_as_they_are_written(tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    rows = [{"review": f"review {n}", "stars": n % 2} for n in range(6)]
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = ClassificationOptions(text_column="review", label_column="stars")
    summary = build(str(source), tmp_path / "out", overwrite=False, options=options)
    assert summary.labels["train.jsonl"] == {"0": 3, "1": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"txt,Label\nHi,a\n",
            "texts.csv: expected a column 'text'; found 'txt', 'Label'\n\n"
            'hint: did you mean "txt"?\n\n'
            "texts.csv: expected a column 'label'; found 'txt', 'Label'\n\n"
            'hint: did you mean "Label"?',
        ),
        (b"", "texts.csv: label: expected at least two different labels; found none"),
        (b"text,label\n", "texts.csv: label: expected at least two different labels; found none"),
        (
            b"text,label\nHi,a\nHo,a\n",
            "texts.csv: label: expected at least two different labels; found 'a'",
        ),
        (
            b"text,label\nHi,a\nHo\nYes,no,b\n",
            "texts.csv:3: expected 2 fields, as in the header; found 1\n\n"
            "hint: put double quotes around fields that contain a comma\n\n"
            "texts.csv:4: expected 2 fields, as in the header; found 3\n\n"
            "hint: put double quotes around fields that contain a comma",
        ),
        (
            "text,label\nSchön,a\n".encode("latin-1"),
            "texts.csv:2: expected UTF-8; found byte 0xf6 at offset 14\n\n"
            "hint: save the file as UTF-8 (it may be Latin-1 or Windows-1252)",
        ),
    ],
    ids=["other columns", "empty", "header alone", "one label", "malformed", "Latin-1"],
)
def test_the_error_for_an_invalid_table_lists_its_faults(
    tmp_path: Path, content: bytes, message: str
) -> None:
    source = tmp_path / "texts.csv"
    source.write_bytes(content)
    with pytest.raises(DatasetError) as error:
        build(str(source), tmp_path / "out", overwrite=False, options=ClassificationOptions())
    assert str(error.value).replace(f"{tmp_path}/", "") == message
    assert not (tmp_path / "out").exists()
