"""Where the assistant's turns begin and end in training, as they do in generation."""

from __future__ import annotations

import copy
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from qwen_local.datasets.tokenizer import ChatTokenizer, Thinking, Tokenized
from qwen_local.embedded import tiny_model_path
from qwen_local.errors import DatasetError, JobError

STOCK = ("qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6")
EMPTY = "<think>\n\n</think>\n\n"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says <|im_end|>.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def calls(city: str, text: str = "") -> dict[str, Any]:
    called = {"name": "weather", "arguments": {"city": city}}
    return assistant(text, tool_calls=[{"type": "function", "function": called}])


def tool(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text}


def marked(tokenizer: ChatTokenizer, row: Tokenized) -> str:
    """The row as text, with what is trained in «guillemets»."""
    said, start = "", 0
    for t in range(1, len(row.ids) + 1):
        if t == len(row.ids) or row.supervised[t] != row.supervised[start]:
            part = tokenizer.decode(row.ids[start:t], skip_special_tokens=False)
            said += f"«{part}»" if row.supervised[start] else part
            start = t
    return said


# --- several turns ---

TALK = [user("1?"), assistant("2."), user("3?"), assistant("4.")]


def test_the_hybrid_template_gives_a_row_for_each_answer(qwen: dict[str, ChatTokenizer]) -> None:
    rows = qwen["qwen3"].encode_conversation(TALK)
    assert [marked(qwen["qwen3"], row) for row in rows] == [
        f"<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n{EMPTY}«2.<|im_end|>»",
        "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n2.<|im_end|>\n"
        f"<|im_start|>user\n3?<|im_end|>\n<|im_start|>assistant\n{EMPTY}«4.<|im_end|>»",
    ]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507"])
def test_a_template_that_writes_turns_in_one_way_gives_one_row(
    name: str, qwen: dict[str, ChatTokenizer]
) -> None:
    [row] = qwen[name].encode_conversation(TALK)
    assert marked(qwen[name], row).endswith(
        "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n«2.<|im_end|>»\n"
        "<|im_start|>user\n3?<|im_end|>\n<|im_start|>assistant\n«4.<|im_end|>»"
    )


def test_without_think_blocks_the_hybrid_template_gives_one_row_too(
    qwen: dict[str, ChatTokenizer],
) -> None:
    [row] = qwen["qwen3"].encode_conversation(TALK, thinking="drop")
    assert marked(qwen["qwen3"], row) == (
        "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n«2.<|im_end|>»\n"
        "<|im_start|>user\n3?<|im_end|>\n<|im_start|>assistant\n«4.<|im_end|>»"
    )


def test_a_message_that_the_data_leave_out_is_context(qwen: dict[str, ChatTokenizer]) -> None:
    [row] = qwen["qwen2_5"].encode_conversation(TALK, untrained=frozenset([3]))
    assert marked(qwen["qwen2_5"], row).endswith("<|im_start|>assistant\n«2.<|im_end|>»")
    assert qwen["qwen2_5"].encode_conversation(TALK, untrained=frozenset([1, 3])) == []


def test_an_answer_that_nothing_precedes_is_trained(qwen: dict[str, ChatTokenizer]) -> None:
    [row] = qwen["qwen3_instruct_2507"].encode_conversation([assistant("Hello!"), *TALK])
    assert marked(qwen["qwen3_instruct_2507"], row).startswith(
        "<|im_start|>assistant\n«Hello!<|im_end|>»\n"
    )


# --- reasoning ---

THOUGHT = [user("1?"), assistant("2.", reasoning_content="Hm.")]


@pytest.mark.parametrize(
    ("thinking", "ends"),
    [
        ("auto", "assistant\n«<think>\nHm.\n</think>\n\n2.<|im_end|>»"),
        ("keep", "assistant\n«<think>\nHm.\n</think>\n\n2.<|im_end|>»"),
        ("drop", "assistant\n«2.<|im_end|>»"),
        ("empty", f"assistant\n{EMPTY}«2.<|im_end|>»"),
    ],
)
@pytest.mark.parametrize(
    "said",
    [
        assistant("2.", reasoning_content="Hm."),
        assistant("<think>\nHm.\n</think>\n\n2."),
    ],
)
def test_reasoning_is_kept_dropped_or_left_empty(
    thinking: Thinking, ends: str, said: dict[str, Any], qwen: dict[str, ChatTokenizer]
) -> None:
    [row] = qwen["qwen3"].encode_conversation([user("1?"), said], thinking=thinking)
    assert marked(qwen["qwen3"], row) == f"<|im_start|>user\n1?<|im_end|>\n<|im_start|>{ends}"


def test_every_turn_of_the_hybrid_template_learns_its_reasoning(
    qwen: dict[str, ChatTokenizer],
) -> None:
    rows = qwen["qwen3"].encode_conversation([*THOUGHT, *THOUGHT], thinking="keep")
    assert [marked(qwen["qwen3"], row).count("Hm.") for row in rows] == [1, 1]
    assert all(row.reasoning_left_out == 0 for row in rows)


def test_reasoning_that_cannot_be_kept_is_refused_where_it_is_asked_for(
    qwen: dict[str, ChatTokenizer],
) -> None:
    with pytest.raises(DatasetError) as caught:
        qwen["qwen2_5"].encode_conversation(THOUGHT, thinking="keep")
    assert str(caught.value) == (
        "messages[1]: data.thinking is keep, but the chat template omits the reasoning of this turn"
        "\n\n"
        "hint: set data.thinking to drop, or use a reasoning model"
    )


@pytest.mark.parametrize(
    ("name", "thinking", "begins", "mend"),
    [
        ("qwen2_5", "empty", r"'assistant\n'", "drop"),
        (
            "qwen3_5_think",
            "drop",
            r"'assistant\n<think>\n' or 'assistant\n<think>\n\n</think>\n\n'",
            "empty",
        ),
    ],
)
def test_what_no_prompt_of_the_template_begins_is_refused(
    name: str, thinking: Thinking, begins: str, mend: str, qwen: dict[str, ChatTokenizer]
) -> None:
    after = {"empty": r"'assistant\n<think>\n\n</think>\n\n'", "drop": r"'assistant\n'"}[thinking]
    with pytest.raises(JobError) as caught:
        qwen[name].check_thinking(thinking)
    assert str(caught.value) == (
        f"data.thinking: {thinking} trains answers after {after}, but the prompts of this model's "
        f"chat template start them with {begins}\n\nhint: set it to auto, or to {mend}"
    )


def test_the_prompt_that_an_adapter_is_asked_by_is_known_from_its_rows(
    qwen: dict[str, ChatTokenizer],
) -> None:
    plain, thought = [user("?"), assistant("!")], THOUGHT
    asked = {
        (name, kind, thinking): qwen[name].thinking_after(row.opening)
        for name in ("qwen2_5", "qwen3", "qwen3_5_think", "qwen3_5_nothink")
        for kind, messages in (("plain", plain), ("thought", thought))
        for thinking in ("auto", "drop")
        if (name, thinking) not in {("qwen3_5_think", "drop"), ("qwen3_5_nothink", "drop")}
        for row in qwen[name].encode_conversation(messages, thinking=thinking)
    }
    assert asked == {
        ("qwen2_5", "plain", "auto"): None,
        ("qwen2_5", "plain", "drop"): None,
        ("qwen2_5", "thought", "auto"): None,
        ("qwen2_5", "thought", "drop"): None,
        ("qwen3", "plain", "auto"): False,
        ("qwen3", "plain", "drop"): None,
        ("qwen3", "thought", "auto"): None,
        ("qwen3", "thought", "drop"): None,
        ("qwen3_5_think", "plain", "auto"): False,
        ("qwen3_5_think", "thought", "auto"): None,
        ("qwen3_5_nothink", "plain", "auto"): None,
        ("qwen3_5_nothink", "thought", "auto"): True,
    }


# --- tools ---


def test_the_embedded_model_calls_tools_as_those_of_qwen_do(tiny: ChatTokenizer) -> None:
    system = {"role": "system", "content": "Be kind."}
    messages = [
        system,
        user("Rain?"),
        calls("Bonn", "I look."),
        tool("no"),
        tool("!"),
        assistant("No."),
    ]
    [row] = tiny.encode_conversation(messages, tools=[{"type": "function"}])
    assert marked(tiny, row) == (
        "<|im_start|>system\nBe kind.\n\nThese functions can be called:\n<tools>\n"
        '{"type": "function"}\n</tools>\nA call is written like this:\n<tool_call>\n'
        '{"name": NAME, "arguments": {...}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nRain?<|im_end|>\n"
        "<|im_start|>assistant\n«I look.\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call><|im_end|>»\n'
        "<|im_start|>user\n<tool_response>\nno\n</tool_response>\n"
        "<tool_response>\n!\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n«No.<|im_end|>»"
    )


@pytest.mark.parametrize("name", STOCK)
def test_a_call_is_trained_and_what_the_tool_says_is_context(
    name: str, qwen: dict[str, ChatTokenizer]
) -> None:
    messages = [
        user("Rain?"),
        calls("Bonn"),
        tool("no"),
        calls("Köln"),
        tool("yes"),
        assistant("?"),
    ]
    rows = qwen[name].encode_conversation(messages, tools=[WEATHER])
    learned = [
        part.partition("»")[0] for row in rows for part in marked(qwen[name], row).split("«")[1:]
    ]
    assert len(learned) == 3
    assert ["Bonn" in part for part in learned] == [True, False, False]
    assert ["Köln" in part for part in learned] == [False, True, False]
    assert learned[2] == "?<|im_end|>"
    assert all(part.endswith("<|im_end|>") and "tool_response" not in part for part in learned)
    assert all(row.literals == 1 for row in rows)  # the text of a control token in the description


def test_a_template_that_leaves_calls_out_is_refused(tokenizer_file: Any) -> None:
    chatml = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = ChatTokenizer(Tokenizer.from_file(str(tokenizer_file)), chatml)
    with pytest.raises(DatasetError) as caught:
        tokenizer.encode_conversation([user("Rain?"), calls("Bonn", "I look.")], tools=[WEATHER])
    assert str(caught.value) == (
        "messages[1]: this chat template does not write the whole answer: expected "
        "'weather'; found 'I look.'\n\n"
        "hint: use a model whose template writes answers unchanged"
    )


# --- every template ---

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0|")).filter(
    lambda text: "think>" not in text
)
words = st.tuples(st.sampled_from("Aé世"), texts, st.sampled_from("b.")).map("".join)
"""Answers whose edges no template trims."""


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Exchanges, some with reasoning, some with a call and what came of it."""
    messages: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(words)))
        if draw(st.booleans()):
            messages += [calls(draw(words), draw(st.just("") | words)), tool(draw(words))]
        answer = assistant(draw(words))
        if draw(st.booleans()):
            answer["reasoning_content"] = draw(words)
        messages.append(answer)
    return messages


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
@given(messages=conversations(), thinking=st.sampled_from(["auto", "drop", "empty"]))
@settings(max_examples=30, deadline=None)
def test_context_is_the_generation_prompt_and_the_rest_is_what_the_assistant_wrote(
    name: str, messages: list[dict[str, Any]], thinking: Thinking, qwen: dict[str, ChatTokenizer]
) -> None:
    tokenizer = qwen[name]
    try:
        tokenizer.check_thinking(thinking)
    except JobError:
        thinking = "auto"
    rows = tokenizer.encode_conversation(messages, tools=[WEATHER], thinking=thinking)
    said = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    turns = [
        (row, start, stop)
        for row in rows
        for start in range(len(row.ids))
        if row.supervised[start] and not row.supervised[start - 1]
        for stop in [start + ([*row.supervised[start:], False]).index(False)]
    ]
    assert len(turns) == len(said)
    for index, (row, start, stop) in zip(said, turns, strict=True):
        before = messages[:index]
        if thinking in ("drop", "empty"):
            before = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in before]
        prompts = [
            tokenizer.encode_prompt(before, tools=[WEATHER], enable_thinking=asked)
            for asked in (None, True, False)
        ]
        assert row.ids[:start] in prompts
        text = tokenizer.decode(row.ids[start:stop], skip_special_tokens=False)
        answer = unicodedata.normalize("NFC", messages[index]["content"])
        assert answer in text and text.endswith("<|im_end|>") and text.count("<|im_end|>") == 1
        if "tool_calls" not in messages[index]:
            assert text.removesuffix("<|im_end|>").endswith(answer)
        if "<think>" not in text and "tool_calls" not in messages[index]:
            assert text == f"{answer}<|im_end|>" or "</think>" in text


def test_a_tokenizer_goes_to_another_process_as_it_is() -> None:
    tokenizer = ChatTokenizer.load(tiny_model_path())
    again = copy.copy(tokenizer)  # by the way that pickling takes
    assert again is not tokenizer
    assert again.encode_conversation(TALK) == tokenizer.encode_conversation(TALK)
    assert again.sha256 == tokenizer.sha256


# --- odd conversations ---


@pytest.mark.parametrize(
    "messages",
    [
        [assistant("hi")],
        [{"role": "system", "content": "Be kind."}, assistant("hi")],
        [user("<tool_response>x</tool_response>"), assistant("hi")],
    ],
)
def test_an_empty_think_block_stands_before_every_answer_that_asks_for_it(
    messages: list[dict[str, Any]], qwen: dict[str, ChatTokenizer]
) -> None:
    [row] = qwen["qwen3"].encode_conversation(messages, thinking="empty")
    assert marked(qwen["qwen3"], row).endswith(f"assistant\n{EMPTY}«hi<|im_end|>»")


def test_the_end_of_a_think_block_within_an_answer_is_no_reasoning(
    qwen: dict[str, ChatTokenizer],
) -> None:
    messages = [user("?"), assistant("Write </think> to end it.")]
    [row] = qwen["qwen2_5"].encode_conversation(messages, thinking="drop")
    assert marked(qwen["qwen2_5"], row).endswith("«Write </think> to end it.<|im_end|>»")
    with pytest.raises(DatasetError, match="does not write the whole answer"):
        qwen["qwen3"].encode_conversation(messages)  # its template takes it for one


def test_two_answers_in_a_row_are_refused_with_the_mend(qwen: dict[str, ChatTokenizer]) -> None:
    messages = [user("?"), assistant("a"), assistant("b")]
    with pytest.raises(DatasetError) as caught:
        qwen["qwen3"].encode_conversation(messages)
    assert caught.value.faults[0].hint == (
        "join the two assistant messages, or set data.thinking to drop"
    )
    [row] = qwen["qwen3"].encode_conversation(messages, thinking="drop")
    assert marked(qwen["qwen3"], row).count("«") == 2
