"""The model and the rows that ship with the package are what the card says they are."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from qwen_local.embedded import sample_data_path, tiny_model_path
from qwen_local.embedded.make.corpus import (
    LIST_STRUCTURES,
    Message,
    chat_text,
    documents,
    held_out_rows,
    held_out_tasks,
    train_rows,
    write_rows,
)
from qwen_local.embedded.make.holdout import RESERVED, held_out, pairs

TINY = tiny_model_path()
PARAMETERS = 2_164_928

# The added tokens of Qwen/Qwen3-0.6B in the order of its ids (151643 to 151668), and whether its
# tokenizer_config.json calls them special.
QWEN3_ADDED = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<|object_ref_start|>": True,
    "<|object_ref_end|>": True,
    "<|box_start|>": True,
    "<|box_end|>": True,
    "<|quad_start|>": True,
    "<|quad_end|>": True,
    "<|vision_start|>": True,
    "<|vision_end|>": True,
    "<|vision_pad|>": True,
    "<|image_pad|>": True,
    "<|video_pad|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<|fim_prefix|>": False,
    "<|fim_middle|>": False,
    "<|fim_suffix|>": False,
    "<|fim_pad|>": False,
    "<|repo_name|>": False,
    "<|file_sep|>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    "<think>": False,
    "</think>": False,
}

CONVERSATION: list[Message] = [
    {"role": "system", "content": "Be short and clear."},
    {"role": "user", "content": "What colour is the sky?"},
    {"role": "assistant", "content": "The sky is blue."},
]


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return dict(json.loads((TINY / "config.json").read_text(encoding="utf-8")))


def shapes() -> dict[str, list[int]]:
    with safe_open(TINY / "model.safetensors", framework="numpy") as weights:
        return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 (no dict)


def rows_of(name: str) -> list[list[Message]]:
    lines = (sample_data_path() / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


# --- the tokenizer


def test_the_added_tokens_are_qwen3s_in_its_order_and_with_its_flags(raw: Tokenizer) -> None:
    added = raw.get_added_tokens_decoder()
    assert {id_: (token.content, token.special) for id_, token in added.items()} == {
        2022 + place: entry for place, entry in enumerate(QWEN3_ADDED.items())
    }
    assert raw.get_vocab_size() == 2048


def test_the_tokenizer_config_has_the_flags_of_the_tokenizer() -> None:
    said = json.loads((TINY / "tokenizer_config.json").read_text(encoding="utf-8"))
    flags = [(each["content"], each["special"]) for each in said["added_tokens_decoder"].values()]
    assert flags == list(QWEN3_ADDED.items())


def test_transformers_gives_the_ids_of_the_raw_tokenizer(raw: Tokenizer, tokenizer: Any) -> None:
    for text in [*islice(documents(), 200), "Grüße, 東京!\r\n\t<think> 3.14  x"]:
        assert tokenizer.encode(text) == raw.encode(text).ids
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2024, 2022)
    assert tokenizer.bos_token_id is None


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_survives_the_round_trip_in_its_composed_form(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_digits_stand_alone_and_words_take_the_space_before_them(raw: Tokenizer) -> None:
    assert raw.encode(" numbers above 42").tokens == ["Ġnumbers", "Ġabove", "Ġ", "4", "2"]


# --- the template


def test_the_template_renders_a_conversation_as_pre_training_saw_it(tokenizer: Any) -> None:
    rendered = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    assert rendered == chat_text(CONVERSATION)
    assert rendered == (
        "<|im_start|>system\nBe short and clear.<|im_end|>\n"
        "<|im_start|>user\nWhat colour is the sky?<|im_end|>\n"
        "<|im_start|>assistant\nThe sky is blue.<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("thinking", "tail"),
    [
        ({}, "<|im_start|>assistant\n"),
        ({"enable_thinking": True}, "<|im_start|>assistant\n"),
        ({"enable_thinking": False}, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_only_switching_thinking_off_writes_the_empty_think_block(
    tokenizer: Any, thinking: dict[str, bool], tail: str
) -> None:
    asked = CONVERSATION[:2]
    rendered = tokenizer.apply_chat_template(
        asked, tokenize=False, add_generation_prompt=True, **thinking
    )
    assert rendered == chat_text(asked) + tail


# --- the model


def test_the_config_holds_the_shape_for_transformers_and_for_mlx_lm(config: dict[str, Any]) -> None:
    shape = {
        "model_type": "qwen3",
        "vocab_size": 2048,
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 512,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "use_cache": True,
        "dtype": "bfloat16",
        "rope_theta": 10_000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "eos_token_id": 2024,
        "pad_token_id": 2022,
        "bos_token_id": None,
    }
    assert {key: config.get(key) for key in shape} == shape
    assert not [key for key in config if key.startswith("_") or key in ("auto_map", "model_file")]


def test_the_head_is_tied_and_the_parameters_are_counted() -> None:
    weights = shapes()
    assert "lm_head.weight" not in weights
    assert weights["model.embed_tokens.weight"] == [2048, 192]
    assert sum(_product(shape) for shape in weights.values()) == PARAMETERS


def _product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def test_the_folder_holds_at_most_eight_megabytes_and_nothing_else() -> None:
    files = sorted(path.name for path in TINY.iterdir())
    assert files == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 8_000_000


def test_the_card_names_the_license_and_the_size() -> None:
    card = (TINY / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert f"A Qwen3 of {PARAMETERS:,} parameters" in card


# --- the text and the rows


def test_the_text_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    once, again, other = (list(islice(documents(seed), 300)) for seed in (0, 0, 1))
    assert once == again
    assert once != other


def test_the_shipped_rows_are_what_the_script_makes(tmp_path: Path) -> None:
    write_rows(tmp_path)
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (sample_data_path() / name).read_bytes() == (tmp_path / name).read_bytes()


def test_there_are_200_training_rows_and_100_held_out_rows() -> None:
    train, held = rows_of("train"), rows_of("heldout")
    coding = [row for row in train if row[1]["content"].startswith("```python\n")]
    assert (len(train), len(coding), len(held)) == (200, 180, 100)
    assert {tuple(message["role"] for message in row) for row in train + held} == {
        ("user", "assistant")
    }
    assert len({row[0]["content"] for row in train + held}) == 300


def test_a_row_has_at_most_96_tokens(raw: Tokenizer) -> None:
    texts = [chat_text(row) for row in rows_of("train") + rows_of("heldout")]
    assert max(len(raw.encode(text)) for text in texts) <= 96


def test_every_code_in_the_text_and_in_the_rows_is_python() -> None:
    rows = [message["content"] for row in train_rows() + held_out_rows() for message in row]
    for text in [*rows, *islice(documents(), 2000)]:
        for fenced in text.split("```python\n")[1:]:
            ast.parse(fenced.split("\n```")[0])


def test_the_assistant_of_the_pre_training_text_never_writes_code() -> None:
    for text in islice(documents(), 5000):
        for turn in text.split("<|im_start|>assistant\n")[1:]:
            assert "```" not in turn.split("<|im_end|>")[0]


# --- what is held out


def test_held_out_tasks_have_structures_of_their_own() -> None:
    structures = [task.structure for _, task in held_out_tasks()]
    assert len(set(structures)) == 100
    assert all(held_out(structure) for structure in structures)


def test_held_out_tasks_are_not_in_the_text_or_the_training_rows() -> None:
    questions = [(question, task) for question, task in held_out_tasks()]
    train = [message["content"] + "\n" for row in rows_of("train") for message in row]
    text = "\n".join([*islice(documents(), 10_000), *train]).lower()
    for question, task in questions:
        asked = question.rstrip(".?").lower()
        sought = [asked + mark for mark in ".?\n<"]
        sought += [task.code.lower() + "\n", task.steps.lower()]
        assert not [needle for needle in sought if needle in text]


def test_one_list_structure_in_five_is_held_out() -> None:
    held = Counter(structure[0] for structure in RESERVED)
    assert {family: (held[family], len(every)) for family, every in LIST_STRUCTURES.items()} == {
        "numbers": (56, 278),
        "words": (28, 139),
    }


def test_most_of_every_pair_of_parts_stays_in_training() -> None:
    every = [structure for family in LIST_STRUCTURES.values() for structure in family]
    total = Counter(pair for structure in every for pair in pairs(structure))
    held = Counter(pair for structure in RESERVED for pair in pairs(structure))
    assert all(held[pair] / total[pair] <= 0.4 for pair in total)


# --- the package


def test_the_text_is_made_without_any_framework() -> None:
    code = (
        "import sys; import qwen_local.embedded.make.corpus; "
        "print([name for name in ('torch', 'mlx', 'transformers', 'tokenizers', 'numpy')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
