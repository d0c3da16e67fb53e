"""Tools and their calls, as OpenAI and ShareGPT write them, and each rule with its message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from qwen_local.datasets import record_files
from qwen_local.datasets.formats import Example, examples
from qwen_local.datasets.record_files import Record

WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}}
TOOL = {"type": "function", "function": WEATHER}
ASKED: dict[str, Any] = {"name": "weather", "arguments": {"city": "Ulm"}}
CALL = {"type": "function", "function": ASKED}
RESULT = {"role": "tool", "content": "sunny"}
QUESTION: dict[str, Any] = {"role": "user", "content": "Weather in Ulm?"}
ANSWER = {"role": "assistant", "content": "Sunny."}


def called(**more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", **more}


TALK: list[dict[str, Any]] = [QUESTION, called(tool_calls=[CALL]), RESULT, ANSWER]


def read(record: dict[str, Any]) -> Example:
    [item] = examples([Record("a.jsonl:1", record)])
    assert isinstance(item, Example), item
    return item


def message_of(record: dict[str, Any]) -> str:
    [item] = examples([Record("a.jsonl:1", record)])
    assert isinstance(item, tuple), item
    return "\n\n".join(map(str, item))


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


# --- what is read ---

SHAREGPT = [
    {"from": "human", "value": "Weather in Ulm?"},
    {"from": "function_call", "value": json.dumps(ASKED)},
    {"from": "observation", "value": "sunny"},
    {"from": "gpt", "value": "Sunny."},
]
OPENAI_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Ulm"}'},
}


@pytest.mark.parametrize(
    "record",
    [
        chat(*TALK, tools=[TOOL]),
        chat(*TALK, tools=[WEATHER]),
        chat(*TALK, tools=json.dumps([TOOL])),
        chat(*TALK, tools=[json.dumps(TOOL)]),
        chat(*TALK, functions=[WEATHER]),
        chat(
            QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
            {**RESULT, "tool_call_id": "call_1", "name": "weather"},
            ANSWER,
            tools=[TOOL],
        ),
        chat(
            QUESTION,
            {"role": "assistant", "tool_calls": [ASKED], "function_call": None},
            RESULT,
            ANSWER,
            tools=[TOOL],
        ),
        chat(
            QUESTION,
            called(function_call={"name": "weather", "arguments": '{"city": "Ulm"}'}),
            {"role": "function", "name": "weather", "content": "sunny"},
            ANSWER,
            functions=[WEATHER],
        ),
        {"conversations": SHAREGPT, "tools": json.dumps([WEATHER])},
        {
            "conversations": [
                SHAREGPT[0],
                {"from": "function_call", "value": json.dumps([ASKED])},
                {"from": "tool", "value": "sunny"},
                SHAREGPT[3],
            ],
            "tools": [WEATHER],
        },
    ],
)
def test_all_forms_of_a_call_are_equivalent(record: dict[str, Any]) -> None:
    example = read(record)
    assert example.content == TALK
    assert example.tools == (TOOL,)
    assert (example.empty, example.ignored, example.notes) == (False, (), ())


NONE: list[Any] = [None, "", " ", [], "[]", "null"]


@pytest.mark.parametrize("none", NONE)
def test_no_tools_are_no_tools(none: object) -> None:
    assert read(chat(QUESTION, ANSWER, tools=none)).tools == ()


def test_every_format_of_conversations_may_have_tools() -> None:
    for record in (
        {"prompt": "1?", "completion": "2."},
        {"instruction": "1?", "output": "2."},
        {"conversations": SHAREGPT[::3]},
    ):
        example = read({**record, "tools": [WEATHER]})
        assert (example.tools, example.ignored) == ((TOOL,), ())
    assert read({"text": "x", "tools": [WEATHER]}).ignored == ("tools",)


def test_several_calls_and_several_results_are_one_turn() -> None:
    two = called(content="Let me see.", tool_calls=[CALL, CALL])
    example = read(chat(QUESTION, two, RESULT, RESULT, ANSWER, QUESTION, ANSWER, tools=[TOOL]))
    assert (example.content[1], example.notes) == (two, ())


def test_a_function_without_parameters_is_called_with_none() -> None:
    nothing: list[Any] = [{}, "{}", "", None]
    for none in nothing:
        message = called(tool_calls=[{"name": "weather", "arguments": none}])
        content = read(chat(QUESTION, message, tools=[TOOL])).content
        call = {"name": "weather", "arguments": {}}
        assert content[1] == called(tool_calls=[{"type": "function", "function": call}])


def test_a_call_that_is_written_as_text_may_have_a_result() -> None:
    text = called(content='<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>')
    assert read(chat(QUESTION, text, RESULT, ANSWER)).content == [QUESTION, text, RESULT, ANSWER]


@pytest.mark.parametrize(
    ("messages", "notes"),
    [
        (TALK[:2], ()),
        (TALK[:3], ("ends_without_answer",)),
        ([*TALK, ANSWER], ("roles_not_alternating",)),
        ([TALK[0], *TALK], ("roles_not_alternating",)),
        ([*TALK, *TALK], ()),
    ],
)
def test_calls_and_results_do_not_upset_the_turns(
    messages: list[dict[str, Any]], notes: tuple[str, ...]
) -> None:
    assert read(chat(*messages, tools=[TOOL])).notes == notes


def test_a_function_that_is_not_among_the_tools_is_noted() -> None:
    assert read(chat(*TALK)).notes == ("calls_unlisted_function",)
    other = {"name": "time", "parameters": {}}
    assert read(chat(*TALK, tools=[other])).notes == ("calls_unlisted_function",)


def test_a_table_fills_tools_and_calls_with_nulls_that_are_not_theirs(tmp_path: Path) -> None:
    asked = {"name": "time", "arguments": {"zone": "CET", "city": None}}
    records = [
        chat(QUESTION, called(tool_calls=[ASKED]), tools=[{"name": "weather", "strict": True}]),
        chat(QUESTION, called(tool_calls=[asked]), tools=[{"name": "time", "more": {"a": "b"}}]),
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    first, second = examples(record_files.read(tmp_path / "a.parquet"))
    assert isinstance(first, Example)
    assert isinstance(second, Example)
    assert first.content == [QUESTION, called(tool_calls=[CALL])]
    assert [tool["function"] for tool in first.tools] == [{"name": "weather", "strict": True}]
    assert [tool["function"] for tool in second.tools] == [{"name": "time", "more": {"a": "b"}}]
    assert second.content[1] == called(
        tool_calls=[
            {"type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
        ]
    )


# --- rules ---

CALL_HINT = '\n\nhint: write {"name": ..., "arguments": {...}}'
TOOL_HINT = '\n\nhint: write {"type": "function", "function": {"name": ..., "parameters": {...}}}'
TEXT_HINT = "\n\nhint: write the value itself, or JSON as a text"


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (
            {"name": "weather"},
            "tools: expected a list of tools, or the JSON text of one; found an object"
            f"{TOOL_HINT} in a list",
        ),
        (
            5,
            "tools: expected a list of tools, or the JSON text of one; found 5"
            f"{TOOL_HINT} in a list",
        ),
        (
            "[{]",
            "tools: not valid JSON: Expecting property name enclosed in double quotes at column 3; "
            f"found ']'{TEXT_HINT}",
        ),
        ([5], f"tools[0]: expected an object; found 5{TOOL_HINT}"),
        ([TOOL, {}], f"tools[1].name: expected the name of a function; found nothing{TOOL_HINT}"),
        (
            [{"type": "function", "function": {"name": 7}}],
            f"tools[0].function.name: expected the name of a function; found 7{TOOL_HINT}",
        ),
        (
            [{"type": "function", "function": "weather"}],
            f"tools[0].function: expected an object; found 'weather'{TOOL_HINT}",
        ),
        (
            [{"type": "retrieval", "function": {"name": "x"}}],
            f"tools[0].type: expected function; found 'retrieval'{TOOL_HINT}",
        ),
        (
            '[{"name": "a\\u0000"}]',
            "tools[0].name: expected text; found a NUL character (character 2)\n\nhint: remove it",
        ),
        (
            '[{"name": "a", "name": "b"}]',
            "tools: the key 'name' occurs more than once in one object\n\nhint: remove one of them",
        ),
    ],
)
def test_each_rule_of_tools_has_its_message(tools: object, message: str) -> None:
    assert message_of(chat(*TALK, tools=tools)) == f"a.jsonl:1: {message}"


def test_tools_have_one_name() -> None:
    assert message_of(chat(*TALK, tools=[TOOL], functions=[WEATHER])) == (
        "a.jsonl:1: functions: expected tools or functions; found both\n\nhint: keep one of the two"
    )


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        (5, f"tool_calls: expected an object; found 5{CALL_HINT}"),
        ([5], f"tool_calls[0]: expected an object; found 5{CALL_HINT}"),
        (
            [{"arguments": {}}],
            f"tool_calls[0].name: expected the name of a function; found nothing{CALL_HINT}",
        ),
        (
            [{"name": "weather"}],
            f"tool_calls[0].arguments: expected an object; it is missing{CALL_HINT}",
        ),
        (
            [{"function": {"name": "weather", "arguments": "{'city': 'Ulm'}"}}],
            "tool_calls[0].function.arguments: not valid JSON: Expecting property name enclosed "
            f"in double quotes at column 2; found \"'city': 'Ulm'}}\"{TEXT_HINT}",
        ),
        (
            [{"name": "weather", "arguments": "[1]"}],
            "tool_calls[0].arguments: expected an object, or the JSON text of one; found a list"
            f"{CALL_HINT}",
        ),
        (
            [{"name": "weather", "arguments": "[" * 100_000}],
            "tool_calls[0].arguments: expected at most 64 levels of nesting",
        ),
    ],
)
def test_each_rule_of_calls_has_its_message(calls: object, message: str) -> None:
    talk = [QUESTION, called(tool_calls=calls), RESULT, ANSWER]
    assert message_of(chat(*talk, tools=[TOOL])) == f"a.jsonl:1: messages[1].{message}"


def test_a_message_calls_under_one_key() -> None:
    both = called(tool_calls=[CALL], function_call=ASKED)
    assert message_of(chat(QUESTION, both, tools=[TOOL])) == (
        "a.jsonl:1: messages[1].function_call: expected tool_calls or function_call; found both\n\n"
        "hint: keep one of the two"
    )


def test_a_result_follows_its_call() -> None:
    assert message_of(chat(RESULT, *TALK, tools=[TOOL])) == (
        "a.jsonl:1: messages[0].role: expected a message that calls a tool before its result\n\n"
        "hint: add the call, or remove the row"
    )


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_call_is_reported(value: str) -> None:
    talk = [SHAREGPT[0], {"from": "function_call", "value": value}, *SHAREGPT[2:]]
    assert message_of({"conversations": talk}) == (
        f"a.jsonl:1: conversations[1].value: expected the call of a tool; found nothing{CALL_HINT}"
    )


# --- what is left out ---


def test_a_weight_of_zero_leaves_a_message_out() -> None:
    talk = [QUESTION, {**ANSWER, "weight": 0}, QUESTION, {**ANSWER, "weight": 1.0}]
    example = read(chat(*talk))
    assert example.content == [QUESTION, ANSWER, QUESTION, ANSWER]
    assert (example.untrained, example.ignored) == (frozenset({1}), ())


def test_an_unsupervised_message_may_be_empty() -> None:
    silent = {"role": "assistant", "content": "", "weight": 0}
    assert not read(chat(QUESTION, silent, QUESTION, ANSWER)).empty


def test_indices_count_a_system_message_from_another_key() -> None:
    talk = [SHAREGPT[0], {**SHAREGPT[3], "weight": 0}, SHAREGPT[0], SHAREGPT[3]]
    assert read({"conversations": talk, "system": "Be brief."}).untrained == frozenset({2})


def test_parts_of_text_are_joined_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "1"}, {"type": "text", "text": "?"}]
    rules = {"role": "developer", "content": "Be brief."}
    example = read(
        chat(rules, {"role": "user", "content": parts}, ANSWER, parallel_tool_calls=False)
    )
    assert example.content == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1?"},
        ANSWER,
    ]
    assert example.ignored == ("parallel_tool_calls",)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_three_names(key: str) -> None:
    example = read(chat(QUESTION, {**ANSWER, key: "Hm."}))
    assert example.content == [QUESTION, {**ANSWER, "reasoning_content": "Hm."}]
    assert example.ignored == ()


def test_of_two_reasonings_the_first_name_counts() -> None:
    example = read(chat(QUESTION, {**ANSWER, "reasoning_content": "Hm.", "thinking": "Oh."}))
    assert example.content == [QUESTION, {**ANSWER, "reasoning_content": "Hm."}]
    assert example.ignored == ("messages[].thinking",)
