"""`qwen-local data build`: the folder, the summary, and one message for what cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from qwen_local.cli.build import build
from qwen_local.recipes import classification, code_alpaca, movielens

Cli = Callable[..., Any]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Ten users, each of whom rates twelve films, half of them well."""
    folder = tmp_path / "ml"
    folder.mkdir()
    ratings = [f"{u},{f},{3 + f % 2 * 1.5},{f}\n" for u in range(10) for f in range(12)]
    (folder / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{''.join(ratings)}")
    titles = [f"{f},Film {f},Drama\n" for f in range(12)]
    (folder / "movies.csv").write_text(f"movieId,title,genres\n{''.join(titles)}")
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    lines = [f"{label} {n},{label}\n" for label in "ab" for n in range(20)]
    path.write_text(f"text,label\n{''.join(lines)}")
    return path


def test_movielens_is_built_and_summed_up(cli: Cli, films: Path) -> None:
    flags = ["--train", "20", "--eval", "4", "--balance"]
    result = cli("data", "build", "movielens", films, "--output", "rows", *flags)
    assert (result.code, result.out) == (
        0,
        "rows/train.jsonl: 20 rows (No 10, Yes 10)\n"
        "rows/valid.jsonl: 4 rows (No 2, Yes 2)\n"
        "left out: too little history 50, not drawn 46\n",
    )
    assert result.err == f"{films}: 120 ratings, 12 titles\n"


def test_a_shortfall_is_reported_on_stderr(cli: Cli, films: Path) -> None:
    flags = ["--train", "100", "--eval", "0", "--json"]
    result = cli("data", "build", "movielens", films, "--output", "rows", *flags)
    assert json.loads(result.out) == {
        "output": "rows",
        "rows": {"train.jsonl": 70, "valid.jsonl": 0},
        "labels": {"train.jsonl": {"Yes": 40, "No": 30}, "valid.jsonl": {}},
        "left_out": {
            "films_without_title": 0,
            "ratings_without_title": 0,
            "rated_again": 0,
            "too_little_history": 50,
            "not_drawn": 0,
        },
        "notes": [
            "train.jsonl has 70 rows, not 100: its users have no more ratings with enough history"
        ],
    }
    assert result.err.splitlines()[1:] == json.loads(result.out)["notes"]


def test_quiet_is_quiet(cli: Cli, films: Path) -> None:
    result = cli("data", "build", "movielens", films, "--output", "rows", "--quiet")
    assert (result.code, result.err) == (0, "")


def test_code_alpaca_is_built_and_summed_up(cli: Cli, tmp_path: Path) -> None:
    rows = [
        {"instruction": f"Print {n} in Python.", "input": "", "output": f"print({n})"}
        for n in range(30)
    ]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    result = cli("data", "build", "code-alpaca", "alpaca.json", "--rows", "20", "--output", "rows")
    assert (result.code, result.out, result.err) == (
        0,
        "rows/train.jsonl: 18 rows (python 18)\n"
        "rows/valid.jsonl: 2 rows (python 2)\n"
        "left out: nothing\n",
        "",
    )


def test_classification_is_built_and_summed_up(cli: Cli, texts: Path) -> None:
    flags = ["--per-category", "10", "--instruction", "One of {categories}?"]
    result = cli("data", "build", "classification", texts, "--output", "rows", *flags)
    assert (result.code, result.out, result.err) == (
        0,
        "rows/train.jsonl: 18 rows (a 9, b 9)\n"
        "rows/valid.jsonl: 2 rows (a 1, b 1)\n"
        "left out: not drawn 20\n",
        "",
    )
    [first, *_] = Path("rows/train.jsonl").read_text().splitlines()
    assert json.loads(first)["prompt"].startswith("One of a, b?\n\n")


@pytest.mark.slow
def test_a_build_is_trained_on_as_it_is(cli: Cli, films: Path) -> None:
    assert cli("data", "build", "movielens", films, "--output", "rows", "--quiet").code == 0
    job = ("--model", "qwen-local/tiny", "--data", "rows", "--steps", "1", "--device", "cpu")
    result = cli("train", *job, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["eval_loss"] > 0


def test_a_build_is_replaced_only_on_request(cli: Cli, texts: Path) -> None:
    command = ["data", "build", "classification", texts, "--output", "rows"]
    assert cli(*command).code == 0
    before = Path("rows/train.jsonl").read_bytes()
    result = cli(*command, "--seed", "1")
    assert (result.code, result.out, result.err) == (
        2,
        "",
        "--output: rows is not empty\n\nhint: choose another folder with --output, "
        "or replace its train.jsonl and valid.jsonl with --overwrite\n",
    )
    assert Path("rows/train.jsonl").read_bytes() == before
    assert cli(*command, "--seed", "1", "--overwrite").code == 0
    assert Path("rows/train.jsonl").read_bytes() != before


def test_every_fault_of_both_films_and_ratings_comes_in_one_message(cli: Cli, films: Path) -> None:
    with (films / "ratings.csv").open("a", encoding="utf-8") as file:
        file.write("1,2,six,3\n1,2\n")
    with (films / "movies.csv").open("a", encoding="utf-8") as file:
        file.write("x,Film,Drama\n")
    result = cli("data", "build", "movielens", films, "--output", "rows")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"{films}/movies.csv:14: movieId: expected a whole number from 0 to 2147483647; "
        "found 'x'\n\n"
        f"{films}/ratings.csv:122: rating: expected stars from 0.5 to 5 in steps of a half; "
        "found 'six'\n\n"
        f"{films}/ratings.csv:123: expected 4 fields, as in the header; found 2\n"
    )
    assert not Path("rows").exists()


def test_a_sample_of_all_rows_is_a_contradiction(cli: Cli) -> None:
    result = cli("data", "build", "code-alpaca", "alpaca.json", "--sample", "--output", "rows")
    assert result.code == 2
    assert (
        result.err.splitlines()[-1] == "Error: --sample needs --rows: the number of rows to sample."
    )


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("movielens", movielens.MovieLensOptions()),
        ("code-alpaca", code_alpaca.CodeAlpacaOptions()),
        ("classification", classification.ClassificationOptions()),
    ],
)
def test_the_defaults_of_the_flags_are_those_of_the_recipe(command: str, options: Any) -> None:
    given = build.commands[command].make_context(command, ["source", "--output", "rows"]).params
    defaults = {field.name: getattr(options, field.name) for field in fields(options)}
    defaults.pop("instruction", None)  # left to the recipe: it is long
    assert defaults.items() <= given.items()
