"""Five ways to write a row, one way to read it, and each rule with its message."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_local.datasets.formats import Example, FormatName, Meta, examples
from qwen_local.datasets.record_files import Record
from qwen_local.errors import DatasetError


def read(*records: dict[str, Any], format: FormatName = "auto") -> list[Example]:
    """The examples of a file with these records, all of which must be good."""
    numbered = [Record(f"train.jsonl:{n}", record) for n, record in enumerate(records, 1)]
    items = list(examples(numbered, format))
    if faults := [fault for item in items if isinstance(item, tuple) for fault in item]:
        raise DatasetError(faults)
    return [item for item in items if isinstance(item, Example)]


def message_of(*records: dict[str, Any], format: FormatName = "auto") -> str:
    with pytest.raises(DatasetError) as caught:
        read(*records, format=format)
    return str(caught.value)


def turn(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


PAIR = [turn("user", "1?"), turn("assistant", "2.")]
SYSTEM = turn("system", "Be brief.")
ROLES = "expected system, user, assistant or tool; found"


# --- one conversation, five formats ---


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("messages", {"messages": PAIR}),
        ("prompt", {"prompt": "1?", "completion": "2."}),
        ("alpaca", {"instruction": "1?", "output": "2."}),
        ("alpaca", {"instruction": "1?", "input": "", "output": "2.", "history": None}),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "2."}]},
        ),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "user", "value": "1?"},
                    {"from": "assistant", "value": "2."},
                ]
            },
        ),
    ],
)
def test_all_formats_say_the_same(name: FormatName, record: dict[str, Any]) -> None:
    for format in ("auto", name):
        [example] = read(record, format=format)
        assert (example.format, example.content) == (name, PAIR)
        assert (example.ignored, example.notes) == ((), ())


def test_text_stays_text() -> None:
    [example] = read({"text": "The sky is blue."})
    assert (example.format, example.content) == ("text", "The sky is blue.")


def test_alpaca_joins_instruction_and_input_and_keeps_history_and_system() -> None:
    [example] = read(
        {
            "instruction": "Add.",
            "input": "1, 1",
            "output": "2.",
            "system": "Be brief.",
            "history": [["Hi", "Hello."], ["Well?", "Well."]],
        }
    )
    assert example.content == [
        SYSTEM,
        turn("user", "Hi"),
        turn("assistant", "Hello."),
        turn("user", "Well?"),
        turn("assistant", "Well."),
        turn("user", "Add.\n1, 1"),
        turn("assistant", "2."),
    ]


def test_sharegpt_takes_the_system_message_from_either_place() -> None:
    talk = [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "2."}]
    inside = {"conversations": [{"from": "system", "value": "Be brief."}, *talk]}
    beside = {"conversations": talk, "system": "Be brief."}
    assert read(inside)[0].content == read(beside)[0].content == [SYSTEM, *PAIR]


def test_reasoning_is_kept_where_it_is_given() -> None:
    thought = turn("assistant", "2.", reasoning_content="Hm.")
    assert read({"messages": [PAIR[0], thought]})[0].content == [PAIR[0], thought]
    absent = turn("assistant", "2.", reasoning_content=None)
    assert read({"messages": [PAIR[0], absent]})[0].content == PAIR


def test_keys_without_a_meaning_are_ignored_and_named() -> None:
    named = [
        turn("user", "1?", name="Ada", reasoning_content="x", weight=1),
        turn("assistant", "2.", refusal="No.", audio=None),
    ]
    [example] = read({"messages": named, "uuid": 7, "prompt": "x", "empty": None})
    assert example.content == PAIR
    assert example.ignored == (
        "uuid",
        "prompt",
        "messages[].name",
        "messages[].reasoning_content",
        "messages[].weight",
        "messages[].refusal",
    )


def test_id_and_category_stay_with_the_example() -> None:
    record = {"messages": PAIR, "id": "q7", "category": 3}
    [example] = read(record)
    assert (example.meta, example.ignored) == (Meta(id="q7", category=3), ())
    [bare] = read({"messages": PAIR, "id": None})
    assert (bare.meta, bare.ignored) == (Meta(id=None, category=None), ())


@pytest.mark.parametrize("value", [True, 1.5, ["a"], {"a": 1}])
def test_an_id_or_category_that_is_neither_text_nor_a_whole_number_is_ignored(value: Any) -> None:
    [example] = read({"messages": PAIR, "id": value, "category": value})
    assert example.meta == Meta(id=None, category=None)
    assert example.ignored == ("id", "category")


@pytest.mark.parametrize(
    ("roles", "notes"),
    [
        ("u a u a", ()),
        ("s u a", ()),
        ("u a u", ("ends_without_answer",)),
        ("u u a", ("roles_not_alternating",)),
        ("a u a", ("roles_not_alternating",)),
        ("u a a u u", ("roles_not_alternating", "ends_without_answer")),
    ],
)
def test_unusual_turns_are_allowed_and_noted(roles: str, notes: tuple[str, ...]) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    [example] = read({"messages": [turn(names[r], "x") for r in roles.split()]})
    assert example.notes == notes


# --- rules ---


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": None}, "train.jsonl:1: messages: expected a list; found null"),
        ({"messages": "Hi"}, "train.jsonl:1: messages: expected a list; found 'Hi'"),
        (
            {"messages": []},
            "train.jsonl:1: messages: expected at least one message; the list is empty\n\n"
            "hint: remove the row",
        ),
        ({"messages": ["Hi"]}, "train.jsonl:1: messages[0]: expected an object; found 'Hi'"),
        (
            {"messages": [SYSTEM, *PAIR[:1]]},
            "train.jsonl:1: messages: expected at least one assistant message; found system, user"
            "\n\nhint: add the answer to train on, or remove the row",
        ),
        (
            {"messages": [*PAIR, turn("bot", "x")]},
            f"train.jsonl:1: messages[2].role: {ROLES} 'bot'\n\n"
            'hint: change "bot" to "assistant"',
        ),
        (
            {"messages": [turn("User", "x"), PAIR[1]]},
            f'train.jsonl:1: messages[0].role: {ROLES} \'User\'\n\nhint: change "User" to "user"',
        ),
        (
            {"messages": [turn("narrator", "x"), PAIR[1]]},
            f"train.jsonl:1: messages[0].role: {ROLES} 'narrator'\n\nhint: name the role",
        ),
        (
            {"messages": [*PAIR, turn("tool", "x")]},
            "train.jsonl:1: messages[2].role: expected a message that calls a tool before its "
            "result\n\nhint: add the call, or remove the row",
        ),
        (
            {"messages": [*PAIR, turn("function_call", "x")]},
            f"train.jsonl:1: messages[2].role: {ROLES} 'function_call'\n\n"
            'hint: write the call into "tool_calls" of an assistant message',
        ),
        (
            {"messages": [{"content": "x"}, PAIR[1]]},
            f"train.jsonl:1: messages[0].role: {ROLES} nothing\n\nhint: name the role",
        ),
        (
            {"messages": [*PAIR, SYSTEM]},
            "train.jsonl:1: messages[2].role: expected the system message first, and only one\n\n"
            "hint: merge it into the first message",
        ),
        (
            {"messages": [PAIR[0], turn("assistant", None)]},
            "train.jsonl:1: messages[1].content: expected a string; found null\n\n"
            "hint: write a string in quotes",
        ),
        (
            {"messages": [turn("user", 5), PAIR[1]]},
            "train.jsonl:1: messages[0].content: expected a string; found 5\n\n"
            "hint: write a string in quotes",
        ),
        (
            {"messages": [turn("user", [{"type": "image_url"}, "x", {}]), PAIR[1]]},
            "train.jsonl:1: messages[0].content[0].type: expected text; found 'image_url'\n\n"
            "hint: leave out rows with pictures, sound or files\n\n"
            "train.jsonl:1: messages[0].content[1]: expected an object; found 'x'\n\n"
            "train.jsonl:1: messages[0].content[2].type: expected text; found nothing\n\n"
            "hint: leave out rows with pictures, sound or files",
        ),
        (
            {"messages": [turn("user", [{"type": "text", "text": None}]), PAIR[1]]},
            "train.jsonl:1: messages[0].content[0].text: expected a string; found null\n\n"
            "hint: write a string in quotes",
        ),
        (
            {"messages": [PAIR[0], turn("assistant", "2.", weight=0.5)]},
            "train.jsonl:1: messages[1].weight: expected 0 or 1; found 0.5\n\n"
            "hint: 0 leaves the message out of training",
        ),
        (
            {"messages": [{"role": "user", "contents": "1?"}, PAIR[1]]},
            "train.jsonl:1: messages[0].content: expected a string; it is missing\n\n"
            'hint: rename "contents" to "content"',
        ),
        (
            {"messages": [PAIR[0], turn("assistant", "x", reasoning_content=["Hm."])]},
            "train.jsonl:1: messages[1].reasoning_content: expected a string; found a list\n\n"
            "hint: join the parts into one string",
        ),
        (
            {"prompt": "1?", "completion": {"role": "assistant"}},
            "train.jsonl:1: completion: expected a string; found an object\n\n"
            "hint: write a string in quotes",
        ),
        (
            {"instruction": "1?", "output": "2.", "history": [["Hi"]]},
            "train.jsonl:1: history[0]: expected a pair of strings, question and answer",
        ),
        (
            {"instruction": "1?", "output": "2.", "history": "Hi"},
            "train.jsonl:1: history: expected a list of pairs; found 'Hi'",
        ),
        (
            {"instruction": "1?", "output": "2.", "input": 3},
            "train.jsonl:1: input: expected a string; found 3\n\nhint: write a string in quotes",
        ),
        (
            {"conversations": [{"from": "observation", "value": "1?"}]},
            "train.jsonl:1: conversations[0].from: expected a message that calls a tool before its "
            "result\n\nhint: add the call, or remove the row\n\n"
            "train.jsonl:1: conversations: expected at least one assistant message; found tool\n\n"
            "hint: add the answer to train on, or remove the row",
        ),
        (
            {"conversations": [{"from": "bot", "value": "1?"}]},
            "train.jsonl:1: conversations[0].from: expected human, gpt, system, function_call or "
            "observation; found 'bot'\n\n"
            'hint: change "bot" to "gpt"',
        ),
        (
            {
                "system": "Be brief.",
                "conversations": [{"from": "system", "value": "x"}, {"from": "gpt", "value": "x"}],
            },
            "train.jsonl:1: conversations[0].from: expected the system message first, and only one"
            "\n\nhint: merge it into the first message",
        ),
        (
            {"question": "1?", "answer": "2."},
            "train.jsonl:1: expected the keys of one format (messages; prompt and completion; "
            "instruction and output; conversations; text); found question, answer\n\n"
            "hint: rename the keys, or name the columns in data.columns",
        ),
        (
            {"role": "user", "content": "1?"},
            "train.jsonl:1: expected the keys of one format (messages; prompt and completion; "
            "instruction and output; conversations; text); found role, content\n\n"
            'hint: put the messages of a row into {"messages": [...]}',
        ),
    ],
)
def test_each_rule_has_its_message(record: dict[str, Any], message: str) -> None:
    assert message_of(record) == message


def test_every_fault_of_a_row_is_told() -> None:
    assert message_of({"messages": [turn("bot", 1), turn("assistant", "")]}) == (
        f"train.jsonl:1: messages[0].role: {ROLES} 'bot'\n\n"
        'hint: change "bot" to "assistant"\n\n'
        "train.jsonl:1: messages[0].content: expected a string; found 1\n\n"
        "hint: write a string in quotes"
    )


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [PAIR[0], turn("assistant", "")]},
        {"messages": [PAIR[0], turn("assistant", " \n"), *PAIR]},
        {"prompt": "1?", "completion": ""},
        {"instruction": "1?", "output": " "},
        {"instruction": "1?", "output": "2.", "history": [["Hi", ""]]},
        {"conversations": [{"from": "human", "value": "1?"}, {"from": "gpt", "value": ""}]},
        {"text": "  "},
    ],
)
def test_a_row_whose_answer_says_nothing_is_marked(record: dict[str, Any]) -> None:
    [example] = read(record)
    assert isinstance(example, Example)
    assert example.empty


def test_the_first_row_settles_the_format_of_a_file() -> None:
    rows: list[dict[str, Any]] = [
        {"messages": PAIR},
        {"instruction": "1?", "output": "2."},
        {"x": 1},
    ]
    assert message_of(*rows) == (
        "train.jsonl:2: expected the messages format, as train.jsonl:1 has it; "
        "found the alpaca format\n\nhint: keep one format in a file\n\n"
        'train.jsonl:3: messages: expected a list; it is missing\n\nhint: add "messages"'
    )


def test_a_format_that_was_named_holds() -> None:
    row = {"text": "x", "prompt": "1?", "completion": "2."}
    assert read(row, format="text")[0].content == "x"
    assert read(row, format="prompt")[0].content == PAIR
    assert message_of({"messages": PAIR}, {"prompt": "1?"}, format="prompt") == (
        "train.jsonl:1: expected the prompt format, as data.format has it; "
        "found the messages format\n\nhint: set data.format to messages\n\n"
        "train.jsonl:2: completion: expected a string; it is missing\n\n"
        'hint: add "completion"'
    )
