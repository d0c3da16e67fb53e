"""Our masks against an implementation that is not ours.

TRL ships Qwen's chat templates with marks around what the assistant says, and transformers turns
the marks into a mask. It trains three things more than we do, and `as_we_train` takes them away:

1. white space outside of the turn: the new line after `<|im_end|>`, and for Qwen2.5 also the one
   after `assistant`, which the generation prompt already holds;
2. the empty think block, which the generation prompt holds when thinking is off;
3. the mark that opens a think block, where the generation prompt holds it (Qwen3.5 and 3.6).

Left to test_tokenizer.py, as the two differ on purpose: an answer that begins with a new line,
which in transformers' encoding can melt into one token with the end of the header; text of control
tokens in the data, which transformers makes control tokens; `</think>` inside an answer, which the
templates for Qwen3 take for the end of reasoning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from qwen_local.datasets.tokenizer import ChatTokenizer, Tokenized

NAMES = (
    "qwen2_5",
    "qwen3",
    "qwen3_instruct_2507",
    "qwen3_5_think",
    "qwen3_5_nothink",
    "qwen3_6",
)
PROMPTED_TO_THINK = ("qwen3_5_think", "qwen3_5_nothink", "qwen3_6")
START, END = "<|im_start|>", "<|im_end|>"
EMPTY_THINK = "<think>\n\n</think>\n\n"

phrases = st.sampled_from(
    ["", "Grüße, 世界!", "a\n\n  b\t c", "<tool_call>", "assistant\nHi", "e\u0301👩🏽‍🚀", " 1234"]
)
texts = (st.text(st.characters(codec="utf-8", exclude_characters="\0")) | phrases).filter(
    lambda text: "|" not in text and "think>" not in text
)
answers = st.tuples(st.sampled_from("Aé世🦙("), texts).map("".join)
reasoning = st.none() | st.sampled_from(["", "\n", "so, hm"]) | answers


@st.composite
def conversations(draw: st.DrawFn, *, think_early: bool) -> list[dict[str, str]]:
    """One to four exchanges, perhaps with a system message, reasoning and an open question."""
    messages = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    exchanges = draw(st.integers(1, 4))
    for exchange in range(exchanges):
        messages.append({"role": "user", "content": draw(texts)})
        answer = {"role": "assistant", "content": draw(answers)}
        if think_early or exchange == exchanges - 1:
            thought = draw(reasoning)
            if thought is not None:
                answer["reasoning_content"] = thought
        messages.append(answer)
    if think_early and draw(st.booleans()):
        messages.append({"role": "user", "content": draw(texts)})
    return messages


def trl_mask(
    oracle: PreTrainedTokenizerFast, messages: list[dict[str, str]], template: str
) -> Tokenized:
    output: Any = oracle.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    return Tokenized(output["input_ids"], [bool(m) for m in output["assistant_masks"]])


def ids_of(oracle: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(oracle(text, add_special_tokens=False)["input_ids"])


def think_blocks(oracle: PreTrainedTokenizerFast, ids: list[int]) -> set[int]:
    """The positions of empty think blocks that open an assistant turn."""
    header, block = ids_of(oracle, START + "assistant\n"), ids_of(oracle, EMPTY_THINK)
    opening = header + block
    found = (t for t in range(len(ids)) if ids[t : t + len(opening)] == opening)
    return {t + len(header) + k for t in found for k in range(len(block))}


def as_we_train(oracle: PreTrainedTokenizerFast, theirs: Tokenized, name: str) -> Tokenized:
    """TRL's mask without the three things that it trains and we do not."""
    ids, trained = theirs.ids, list(theirs.supervised)
    header, end = ids_of(oracle, START + "assistant\n"), ids_of(oracle, END)
    for t in range(len(ids)):
        if ids[:t][-len(end) :] == end or ids[: t + 1][-len(header) :] == header:
            assert ids[t] == header[-1]  # 1. a new line after the end, or that of the header
            trained[t] = False
    for t in think_blocks(oracle, ids):
        trained[t] = False  # 2.
    if name in PROMPTED_TO_THINK:
        opening = ids_of(oracle, START + "assistant\n<think>\n")
        for t in range(len(ids)):
            if ids[t : t + len(opening)] == opening:
                trained[t + len(header) : t + len(opening)] = [False] * (len(opening) - len(header))
    return Tokenized(ids, trained)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@given(messages=conversations(think_early=True))
@settings(max_examples=40, deadline=None)
def test_ids_and_masks_are_those_of_trl_under_its_training_template(
    name: str,
    messages: list[dict[str, str]],
    qwen: dict[str, ChatTokenizer],
    oracle: PreTrainedTokenizerFast,
    trl_templates: Path,
) -> None:
    template = (trl_templates / f"{name}_training.jinja").read_text(encoding="utf-8")
    theirs = as_we_train(oracle, trl_mask(oracle, messages, template), name)
    [ours] = qwen[f"{name}_training"].encode_conversation(messages, train_on="assistant")
    upto = len(ours.ids)  # what follows the last answer teaches nothing, and is not in our row
    assert ours.ids == theirs.ids[:upto]
    assert ours.supervised == theirs.supervised[:upto]
    assert not any(theirs.supervised[upto:])


@pytest.mark.parametrize("name", NAMES)
@given(messages=conversations(think_early=False))
@settings(max_examples=40, deadline=None)
def test_the_stock_template_trains_the_same_tokens(
    name: str,
    messages: list[dict[str, str]],
    qwen: dict[str, ChatTokenizer],
    oracle: PreTrainedTokenizerFast,
    trl_templates: Path,
) -> None:
    """For Qwen3's hybrid template TRL writes a think block in every turn; we make several rows."""
    template = (trl_templates / f"{name}_training.jinja").read_text(encoding="utf-8")
    theirs = as_we_train(oracle, trl_mask(oracle, messages, template), name)
    ours = qwen[name].encode_conversation(messages, train_on="assistant")
    assert [id for row in ours for id in learned(row)] == learned(theirs)


def learned(row: Tokenized) -> list[int]:
    return [id for id, trained in zip(row.ids, row.supervised, strict=True) if trained]
