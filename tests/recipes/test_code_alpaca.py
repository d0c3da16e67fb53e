"""CodeAlpaca as conversations whose code stands in fences."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from qwen_local.errors import DatasetError, JobError
from qwen_local.recipes.code_alpaca import CodeAlpacaOptions, build
from qwen_local.recipes.output import RecipeSummary


def exercise(n: int, **changed: str) -> dict[str, str]:
    made = {"instruction": f"Print {n} in Python.", "input": "", "output": f"print({n})"}
    return {**made, **changed}


def made(
    tmp_path: Path, exercises: list[Any], **given: Any
) -> tuple[RecipeSummary, list[Any], list[Any]]:
    """The summary and the rows of both files."""
    source = tmp_path / "alpaca.json"
    source.write_text(json.dumps(exercises, indent=1))
    options = CodeAlpacaOptions(**given)
    summary = build(str(source), tmp_path / "out", overwrite=True, options=options)
    files = [tmp_path / "out" / name for name in ("train.jsonl", "valid.jsonl")]
    read = [
        [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
        for file in files
    ]
    return summary, read[0], read[1]


def test_answers_of_code_are_fenced_and_others_stay(tmp_path: Path) -> None:
    rows = [
        exercise(1, input="nums = [1]"),
        exercise(2, output="The output is 2."),
        exercise(3, output="```python\nprint(3)\n```"),
    ]
    summary, train, valid = made(tmp_path, rows, eval_fraction=0)
    assert train == [
        {
            "messages": [
                {"role": "user", "content": "Print 1 in Python.\nnums = [1]"},
                {"role": "assistant", "content": "```python\nprint(1)\n```"},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "Print 2 in Python."},
                {"role": "assistant", "content": "The output is 2."},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "Print 3 in Python."},
                {"role": "assistant", "content": "```python\nprint(3)\n```"},
            ]
        },
    ]
    assert valid == []
    assert summary.labels["train.jsonl"] == {"fenced before": 1, "prose": 1, "python": 1}


def test_the_first_rows_are_those_of_the_file(tmp_path: Path) -> None:
    rows = [exercise(0, output=" "), exercise(1), exercise(1), *(exercise(n) for n in range(2, 90))]
    summary, train, _ = made(tmp_path, rows, rows=3, eval_fraction=0)
    assert [row["messages"][0]["content"] for row in train] == [
        f"Print {n} in Python." for n in (1, 2, 3)
    ]
    assert summary.left_out == {"empty_answer": 1, "repeated": 1, "not_drawn": 0}
    assert summary.notes == []


def test_a_sample_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [exercise(n) for n in range(200)]
    one = made(tmp_path, rows, rows=50, sample=True)
    other = made(tmp_path, random.Random(0).sample(rows, 200), rows=50, sample=True)
    assert one == other
    assert one[0].rows == {"train.jsonl": 45, "valid.jsonl": 5}
    assert one[0].left_out["not_drawn"] == 150
    assert made(tmp_path, rows, rows=50, sample=True, seed=1) != one


def test_a_question_with_two_answers_is_on_one_side(tmp_path: Path) -> None:
    rows = [exercise(n % 20, output=f"print({n})") for n in range(60)]
    _, train, valid = made(tmp_path, rows, eval_fraction=0.3)
    sides = [{row["messages"][0]["content"] for row in side} for side in (train, valid)]
    assert not sides[0] & sides[1]
    assert len(valid) == 18


def test_a_source_with_too_few_rows_is_reported(tmp_path: Path) -> None:
    summary, _, _ = made(tmp_path, [exercise(1), exercise(2)], rows=100)
    assert summary.notes == ["2 rows, not 100: the source has no more"]


def test_every_fault_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    rows = [exercise(1), {"instruction": "Hi", "output": 3}, {"prompt": "a", "completion": "b"}]
    with pytest.raises(DatasetError) as error:
        made(tmp_path, rows)
    assert [fault.where.rpartition("/")[2] for fault in error.value.faults] == [
        *("alpaca.json:7: output", "alpaca.json:11")
    ]
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as error:
        made(tmp_path, [{"prompt": "a", "completion": "b"}])
    assert str(error.value) == (
        f"{tmp_path}/alpaca.json:2: expected the alpaca format; found the prompt format\n\n"
        "hint: train reads this format directly; no recipe is needed"
    )


def test_a_file_without_an_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as error:
        made(tmp_path, [exercise(1, output="")])
    assert str(error.value) == (f"{tmp_path}/alpaca.json: contains no question with an answer")


def test_a_source_in_the_output_folder_is_not_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "train.jsonl"
    source.write_text(json.dumps(exercise(1)) + "\n")
    with pytest.raises(JobError) as error:
        build(str(source), tmp_path, overwrite=True, options=CodeAlpacaOptions())
    assert error.value.faults[0].problem == f"{source} is an input file"
