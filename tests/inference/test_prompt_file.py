"""Rows to be answered: every way to write them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_local.datasets.formats import Meta
from qwen_local.errors import DatasetError
from qwen_local.inference.prompt_file import PromptRow, read_prompts


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "S"}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "q.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def read_one(folder: Path, row: Any) -> PromptRow:
    (question,) = read_prompts(write(folder, row)).rows
    return question


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Hi"}, [user("Hi")]),
        ({"prompt": "Hi", "completion": "Hello."}, [user("Hi")]),
        ({"prompt": "Hi", "completion": None}, [user("Hi")]),
        ({"prompt": "Hi", "system": "S"}, [SYSTEM, user("Hi")]),
        ({"prompt": "Hi", "system": None}, [user("Hi")]),
        ({"prompt": "Hi", "system": ""}, [{"role": "system", "content": ""}, user("Hi")]),
        ({"messages": [user("Hi")]}, [user("Hi")]),
        ({"messages": [user("Hi"), assistant("Hello.")]}, [user("Hi")]),
        ({"messages": [user("Hi")], "system": "S"}, [SYSTEM, user("Hi")]),
        (
            {"messages": [SYSTEM, user("Hi"), assistant("a"), user("?"), assistant("b")]},
            [SYSTEM, user("Hi"), assistant("a"), user("?")],
        ),
        ({"instruction": "Add.", "input": "1 1"}, [user("Add.\n1 1")]),
        ({"instruction": "Add.", "output": "2", "system": "S"}, [SYSTEM, user("Add.")]),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, [user("Hi")]),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "a"},
                ],
                "system": "S",
            },
            [SYSTEM, user("Hi")],
        ),
    ],
    ids=str,
)
def test_a_row_is_asked_up_to_where_the_assistant_goes_on(
    row: Any, messages: list[Any], tmp_path: Path
) -> None:
    assert read_one(tmp_path, row).messages == messages


def test_a_call_at_the_end_is_the_answer_and_its_result_is_a_question(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    asked = read_one(tmp_path, {"messages": [user("Hi"), called], "tools": tools})
    assert asked.messages == [user("Hi")]
    assert [tool["function"]["name"] for tool in asked.example.tools] == ["f"]
    result = {"role": "tool", "content": "1"}
    asked = read_one(tmp_path, {"messages": [user("Hi"), called, result], "tools": tools})
    assert [message["role"] for message in asked.messages] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello."},
        {"messages": [user("Hi"), assistant("Hello.")], "system": "S"},
        {"instruction": "Hi", "output": "Hello."},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
    ],
    ids=str,
)
def test_the_reference_answer_and_what_describes_the_row_stay_with_it(
    row: Any, tmp_path: Path
) -> None:
    asked = read_one(tmp_path, row | {"id": "q7", "category": "greetings"})
    assert asked.example.meta == Meta(id="q7", category="greetings")
    assert asked.example.content == [*asked.messages, assistant("Hello.")]
    assert asked.example.ignored == ()


def test_a_row_without_an_answer_has_no_reference(tmp_path: Path) -> None:
    for row in (
        {"prompt": "Hi"},
        {"instruction": "Hi", "output": None},
        {"messages": [user("Hi")]},
    ):
        asked = read_one(tmp_path, row)
        assert asked.example.content == asked.messages == [user("Hi")]


def test_an_answer_is_read_as_training_reads_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as error:
        read_one(tmp_path, {"prompt": "Hi", "completion": 3})
    assert str(error.value) == (
        f"{tmp_path / 'q.jsonl'}:1: completion: expected a string; found 3\n\n"
        "hint: write a string in quotes"
    )


def test_the_row_of_answers_repeats_the_question_as_it_was_given(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi", "completion": "x"},
        {"prompt": "Hi", "system": "S"},
        {"messages": [user("Hi"), assistant("x")]},
        {"instruction": "Add.", "system": "S"},
    ]
    assert [row.copied for row in read_prompts(write(tmp_path, *rows)).rows] == [
        {"prompt": "Hi"},
        {"prompt": "Hi", "system": "S"},
        {"messages": [user("Hi")]},
        {"messages": [SYSTEM, user("Add.")]},
    ]


def test_a_row_has_its_own_id_or_its_number(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "id": i} for i in ("x", 7, None)] + [{"prompt": "a"}]
    found = read_prompts(write(tmp_path, *rows)).rows
    assert [question.id for question in found] == ["x", 7, 3, 4]


def test_a_system_message_for_all_is_for_rows_without_one(tmp_path: Path) -> None:
    for row in ({"prompt": "Hi", "system": "S"}, {"messages": [SYSTEM, user("Hi")]}):
        assert read_one(tmp_path, row).with_system("T") == [SYSTEM, user("Hi")]
    plain = read_one(tmp_path, {"prompt": "Hi"})
    assert plain.with_system("S") == [SYSTEM, user("Hi")]
    assert plain.with_system(None) == [user("Hi")]


def test_keys_that_mean_nothing_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "sytem": "S", "completion": "x", "id": 1},
        {"instruction": "a", "sytem": "S", "split": "test"},
    ]
    assert read_prompts(write(tmp_path, *rows)).ignored == {"sytem": 2, "split": 1}


def test_all_faults_are_told_at_once_each_with_its_place(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"question": "Hi"},
        {"text": "Once"},
        {"prompt": ["Hi"]},
        {"prompt": "Hi", "system": 3, "id": [1]},
        {"messages": [{"role": "bot", "content": "Hi"}]},
        {"messages": [SYSTEM, assistant("Hi")]},
        {"messages": [SYSTEM, user("Hi")], "system": "S"},
        {"messages": []},
        "{",
        {"prompt": "fine"},
    )
    with pytest.raises(DatasetError) as error:
        read_prompts(path)
    known = "expected the key prompt, messages, instruction or conversations; found"
    mend = 'hint: for example {"prompt": "What color is the sky?"}'
    assert str(error.value).replace(str(path), "q").split("\n\n") == [
        f"q:1: {known} question",
        mend,
        f"q:2: {known} text",
        mend,
        "q:3: prompt: expected a string; found a list",
        "hint: join the parts into one string",
        "q:4: id: expected a string or a whole number; found a list",
        "q:4: system: expected a string; found 3",
        "hint: write a string in quotes",
        "q:5: messages[0].role: expected system, user, assistant or tool; found 'bot'",
        'hint: change "bot" to "assistant"',
        "q:6: messages: expected a user message to answer",
        "q:7: system: expected one system message; found another in messages",
        "hint: keep one of the two",
        "q:8: messages: expected at least one message; the list is empty",
        "hint: remove the row",
        "q:9: not valid JSON: Expecting property name enclosed in double quotes at column 2; "
        "found the end",
        'hint: write one object per line, such as {"prompt": "Hi", "completion": "Hello."}',
    ]


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as error:
        read_prompts(write(tmp_path))
    assert str(error.value) == f"{tmp_path / 'q.jsonl'}: expected rows; it is empty"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("Hi")
    with pytest.raises(DatasetError) as error:
        read_prompts(tmp_path / "q.txt")
    where = tmp_path / "q.txt"
    assert str(error.value) == f"{where}: expected one of .jsonl, .json, .csv, .parquet; found .txt"
