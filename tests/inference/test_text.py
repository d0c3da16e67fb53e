"""Text from tokens: whole characters, thoughts told from the answer, no control characters."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.embedded import tiny_model_path
from qwen_local.inference.text import TextStream, Thoughts

TINY = ChatTokenizer.load(tiny_model_path())
VOCABULARY = 2048
BYTES = [id for id in range(VOCABULARY) if "\N{REPLACEMENT CHARACTER}" in TINY.decode([id])]
"""Tokens that are no whole characters alone."""


def pieces(ids: list[int]) -> list[str]:
    stream = TextStream(TINY.decode)
    return [*(stream.add(id) for id in ids), stream.end()]


@pytest.mark.parametrize(
    "text", ["Grüße, 日本語!", "a🙂b👩‍🚀🇸🇪", "é\n\t é", "\N{REPLACEMENT CHARACTER}x"]
)
def test_wide_characters_come_whole_and_in_order(text: str) -> None:
    ids = TINY.encode_text(text).ids[:-1]
    assert len(ids) > len(set(text)) / 2
    said = pieces(ids)
    assert "".join(said) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(said[:-1])


def test_a_character_comes_with_its_last_token() -> None:
    ids = TINY.encode_text("🙂").ids[:-1]
    assert len(ids) == 4
    assert pieces(ids) == ["", "", "", "🙂", ""]


@given(
    st.lists(st.one_of(st.sampled_from(BYTES), st.integers(0, VOCABULARY - 1)), max_size=40),
)
def test_all_pieces_are_what_all_tokens_decode_to(ids: list[int]) -> None:
    assert "".join(pieces(ids)) == TINY.decode(ids)


def test_a_control_token_within_a_character_has_no_text() -> None:
    first, *others = TINY.encode_text("🙂").ids[:-1]
    ids = [first, *[TINY.end_of_turn] * 5, *others]
    assert "".join(pieces(ids)) == TINY.decode(ids) == "🙂"


def test_what_a_token_costs_does_not_grow_with_the_text() -> None:
    longest = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return TINY.decode(ids)

    generator = random.Random(0)
    stream = TextStream(decode)  # type: ignore[arg-type]  # it is given lists
    for _ in range(500):
        stream.add(generator.choice(BYTES))
    assert longest <= 4


def told_apart(text: str, size: int, *, thinking: bool = False) -> tuple[str, str]:
    """(thoughts, answer) of a text that comes in pieces of this size."""
    thoughts = Thoughts(thinking=thinking)
    parts = [p for at in range(0, len(text), size) for p in thoughts.add(text[at : at + size])]
    parts += thoughts.end()
    return tuple("".join(t for thought, t in parts if thought is kind) for kind in (True, False))  # type: ignore[return-value]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("text", "thinking", "expected"),
    [
        ("Yes.", False, ("", "Yes.")),
        ("<think>\nhm\n</think>\n\nYes.", False, ("<think>\nhm\n</think>", "\n\nYes.")),
        ("\n<think>hm</think>Yes", False, ("\n<think>hm</think>", "Yes")),
        ("hm </thin </think>Yes </think>", True, ("hm </thin </think>", "Yes </think>")),
        ("Is <think> a tag?", False, ("", "Is <think> a tag?")),
        ("<thi", False, ("", "<thi")),
        ("<think>never ends </th", False, ("<think>never ends </th", "")),
        (" \n", False, ("", " \n")),
    ],
)
def test_a_leading_think_block_is_told_from_the_answer(
    text: str, thinking: bool, expected: tuple[str, str], size: int
) -> None:
    assert told_apart(text, size, thinking=thinking) == expected


def test_an_answer_without_thoughts_is_not_held_back() -> None:
    thoughts = Thoughts(thinking=False)
    assert thoughts.add("Y") == [(False, "Y")]
    assert thoughts.add("es <think>") == [(False, "es <think>")]
