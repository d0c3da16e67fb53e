"""Which answers go into a fence, and with which language."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_local.recipes.fences import fenced, language, looks_like_code

REAL = Path(__file__).parents[3] / "shared/data/code-alpaca/code_alpaca_2k.json"


@pytest.mark.parametrize(
    "code",
    [
        "def add(a, b):\n    return a + b",
        "x = 5\nprint(x)",
        "SELECT name\nFROM users\nWHERE age > 18",
        "<p>Hello</p>",
        '"""\nDraw a square.\n"""\nimport turtle\nturtle.forward(1)',
        "#include <iostream>\nusing namespace std;\nint main() {\n  return 0;\n}",
        "bool isEmpty(string s)\n{\n  return s.empty();\n}",
        "div.highlighted { color: red; }",
        "String query = read();\nrun(query);",
        "std_dev <- sd(vec)\nprint(std_dev)",
        "for elem in arr:\n print(elem)",
        "$total = 3;",
        "let total = 3;\nlog(total)",
    ],
)
def test_code_is_code(code: str) -> None:
    assert looks_like_code(code)


@pytest.mark.parametrize(
    "prose",
    [
        "",
        " \n",
        "42",
        "true",
        "[1, 2, 3]",
        "The distinct values are 3, 5, 7 and 9.",
        "For each item in the list we add one.",
        "import the module first and then call it.",
        "You can use the splice() method to remove an item;\nlist.splice(0, 1);",
        "1. Begin\n2. Take the first number\n3. End",
        "Call it like this:\n\nx = f(1)",
        "x = 1\nThis gives one.\nAnd so on.",
    ],
)
def test_prose_and_bare_values_are_not(prose: str) -> None:
    assert not looks_like_code(prose)


@pytest.mark.parametrize(
    ("question", "answer", "tag"),
    [
        ("Write a Python loop.", "for i in range(3):\n    print(i)", "python"),
        ("Write a loop.", "for i in range(3):\n    print(i)", "python"),
        ("Write a loop in JavaScript.", "i += 1", "javascript"),
        ("Change the Java code.", "i += 1;", "java"),
        ("Port this Java to Python.", "from math import pi", "python"),
        ("Port this Java to Python.", "i += 1", None),
        ("Parse an HTML page.", "def parse(page):\n    pass", None),
        ("Write a C program.", "i++;", "c"),
        ("Write a C++ program.", "i++;", "cpp"),
        ("Store the sum in c.", "i++;", None),
        ("Write a C# program.", "i++;", "csharp"),
        ("Grade this work with a C or a D.", "i++;", None),
        ("Go to the next line.", "i++;", None),
        ("Insert a node into the tree.", "i++;", None),
        ("Use Node.js.", "i++;", "javascript"),
        ("Get the names.", "SELECT name\nFROM people", "sql"),
        ("Show a page.", "<!DOCTYPE html>\n<html></html>", "html"),
        ("Say hello.", "#!/bin/bash\necho hello", "bash"),
    ],
)
def test_the_fence_names_the_language_if_question_and_answer_agree(
    question: str, answer: str, tag: str | None
) -> None:
    assert language(question, answer) == tag


def test_a_fence_contains_the_code_unchanged() -> None:
    made = fenced("In Python.", "\n    x = 1\n    print(x)  \n\n")
    assert (made.text, made.kind) == ("```python\n    x = 1\n    print(x)\n```", "python")


def test_in_doubt_the_fence_has_no_language() -> None:
    made = fenced("Add one.", "i += 1")
    assert (made.text, made.kind) == ("```\ni += 1\n```", "no language")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("The sum is 4.", "prose"), ("Try this:\n```python\nx = 1\n```", "fenced before")],
)
def test_other_answers_stay_as_they_are(answer: str, kind: str) -> None:
    made = fenced("In Python.", answer)
    assert (made.text, made.kind) == (answer, kind)


@given(st.text(), st.text())
def test_nothing_of_an_answer_but_blank_lines_around_it_is_lost(question: str, answer: str) -> None:
    text = fenced(question, answer).text
    if text != answer:
        head, _, rest = text.partition("\n")
        assert head.startswith("```")
        assert rest == answer.strip("\n").rstrip() + "\n```"


def kinds(rows: list[dict[str, str]]) -> list[tuple[str, int]]:
    """The most frequent kinds among rows in CodeAlpaca's form."""
    return Counter(
        fenced(f"{row['instruction']}\n{row['input']}", row["output"]).kind for row in rows
    ).most_common(5)


def test_rows_in_the_form_of_the_published_file_are_fenced_as_counted() -> None:
    answers = [
        ("Write a Python function that adds.", "def add(a, b):\n    return a + b"),
        ("Write it in Python.", "x = 5\nprint(x)"),
        ("Write an SQL query for names.", "SELECT name\nFROM users\nWHERE age > 18"),
        ("What is 2 + 2?", "The sum is 4."),
    ]
    rows = [{"instruction": one, "input": "", "output": answer} for one, answer in answers]
    assert kinds(rows) == [("python", 2), ("sql", 1), ("prose", 1)]


if REAL.is_file():  # not in a clone

    def test_the_published_file_is_fenced_as_counted() -> None:
        """A regression test: these counts came with a look at samples of each kind."""
        assert kinds(json.loads(REAL.read_text("utf-8"))) == [
            ("python", 700),
            ("prose", 346),
            ("javascript", 199),
            ("no language", 181),
            ("sql", 178),
        ]
