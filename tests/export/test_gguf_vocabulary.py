"""The tokenizer in GGUF files against the tokenizer itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import Tokenizer

from qwen_local.embedded import tiny_model_path
from qwen_local.embedded.make.tokenizer import ADDED, CHAT_TEMPLATE, SPECIAL, SPLIT
from qwen_local.errors import ModelError
from qwen_local.export.gguf_vocabulary import HINT, QWEN2_SPLIT, read_vocabulary
from tests.export.gguf_files import VOCABULARY, model_files

TINY = tiny_model_path()
Content = dict[str, Any]


def edit(file: Path, change: Callable[[Content], object]) -> None:
    content = json.loads(file.read_text("utf-8"))
    change(content)
    file.write_text(json.dumps(content), "utf-8")


def test_every_token_stands_at_its_id() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    vocabulary = read_vocabulary(TINY, 2048)
    assert list(vocabulary.tokens) == [tokenizer.id_to_token(id) for id in range(2048)]
    assert Counter(vocabulary.types) == {
        TokenType.NORMAL: 2048 - len(ADDED),
        TokenType.CONTROL: len(SPECIAL),
        TokenType.USER_DEFINED: len(ADDED) - len(SPECIAL),
    }
    kinds = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert (kinds["<|im_end|>"], kinds["<think>"]) == (TokenType.CONTROL, TokenType.USER_DEFINED)


def test_merges_keep_their_order() -> None:
    merges = json.loads((TINY / "tokenizer.json").read_text("utf-8"))["model"]["merges"]
    assert [merge.split(" ") for merge in read_vocabulary(TINY, 2048).merges] == merges


def test_ids_beyond_the_tokenizer_are_unused(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(model_files(tmp_path).folder, VOCABULARY)
    assert vocabulary.tokens[2048:] == ("[PAD2048]", "[PAD2049]", "[PAD2050]")
    assert vocabulary.types[2048:] == (TokenType.UNUSED,) * 3


def test_the_end_is_that_of_the_turn_and_what_the_tokenizer_does_not_name_is_that_of_the_text(
    tmp_path: Path,
) -> None:
    folder = model_files(tmp_path).folder
    first = read_vocabulary(folder, VOCABULARY)
    assert [first.tokens[id] for id in (first.end_of_turn, first.beginning, first.padding)] == [
        "<|im_end|>",
        "<|endoftext|>",
        "<|endoftext|>",
    ]
    named = {"bos_token": "<|im_start|>", "pad_token": "<|fim_pad|>", "eos_token": "<|endoftext|>"}
    edit(folder / "tokenizer_config.json", lambda content: content.update(named))
    second = read_vocabulary(folder, VOCABULARY)
    assert [second.tokens[id] for id in (second.end_of_turn, second.beginning, second.padding)] == [
        "<|im_end|>",
        "<|im_start|>",
        "<|fim_pad|>",
    ]


def test_a_template_in_its_own_file_wins(tmp_path: Path) -> None:
    folder = model_files(tmp_path).folder
    assert read_vocabulary(folder, VOCABULARY).template == CHAT_TEMPLATE
    own = CHAT_TEMPLATE + "{# mine #}"
    (folder / "chat_template.jinja").write_text(own, "utf-8")
    assert read_vocabulary(folder, VOCABULARY).template == own


def test_the_embedded_tokenizer_cuts_text_as_qwens_own_does() -> None:
    """transformers writes the same into the tokenizer.json of every Qwen2 and Qwen3."""
    from transformers.models.qwen2 import tokenization_qwen2

    assert QWEN2_SPLIT == SPLIT == tokenization_qwen2.PRETOKENIZE_REGEX


def _steps(content: Content) -> Any:
    return content["pre_tokenizer"]["pretokenizers"]


CUTS = "pre_tokenizer: splits text differently than Qwen2, which llama.cpp cannot reproduce"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: _steps(c)[0]["pattern"].update(Regex=r"\p{N}{1,3}|\w+|\W"), CUTS),
        (lambda c: _steps(c)[0].update(behavior="Removed"), CUTS),
        (lambda c: _steps(c)[1].update(add_prefix_space=True), CUTS),
        (lambda c: _steps(c).pop(0), CUTS),
        (lambda c: c.update(pre_tokenizer=None), CUTS),
        (lambda c: c.update(pre_tokenizer=_steps(c)[1]), CUTS),
        (
            lambda c: c["model"].update(ignore_merges=True),
            "model.ignore_merges: expected false; found true",
        ),
        (
            lambda c: c["model"].update(dropout=0.1),
            "model.dropout: expected null; found 0.1",
        ),
        (
            lambda c: c.update(normalizer={"type": "Lowercase"}),
            'normalizer: expected NFC or none; found {"type": "Lowercase"}',
        ),
        (
            lambda c: c["added_tokens"][3].update(lstrip=True, rstrip=True),
            "added_tokens: <|object_ref_start|> uses lstrip, rstrip, which llama.cpp does not "
            "support",
        ),
    ],
)
def test_what_llama_cpp_would_do_otherwise_is_refused(
    change: Callable[[Content], object], problem: str, tmp_path: Path
) -> None:
    file = model_files(tmp_path).folder / "tokenizer.json"
    edit(file, change)
    with pytest.raises(ModelError) as error:
        read_vocabulary(tmp_path, VOCABULARY)
    assert str(error.value) == f"{file}: {problem}\n\nhint: {HINT}"


def test_empty_affixes_and_no_normalizer_are_as_good_as_qwens(tmp_path: Path) -> None:
    """As Qwen2's own tokenizer.json writes them."""
    file = model_files(tmp_path).folder / "tokenizer.json"
    affixes = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    edit(file, lambda content: content["model"].update(affixes))
    edit(file, lambda content: content.update(normalizer=None))
    assert read_vocabulary(tmp_path, VOCABULARY) == read_vocabulary(TINY, VOCABULARY)


def test_all_reasons_are_told_at_once(tmp_path: Path) -> None:
    file = model_files(tmp_path).folder / "tokenizer.json"
    edit(file, lambda content: content.update(normalizer=None, pre_tokenizer=None))
    edit(file, lambda content: content["model"].update(byte_fallback=True))
    with pytest.raises(ModelError) as error:
        read_vocabulary(tmp_path, VOCABULARY)
    assert [fault.where for fault in error.value.faults] == [
        f"{file}: model.byte_fallback",
        f"{file}: pre_tokenizer",
    ]


def test_a_model_with_fewer_embeddings_than_tokens_is_refused(tmp_path: Path) -> None:
    folder = model_files(tmp_path).folder
    with pytest.raises(ModelError) as error:
        read_vocabulary(folder, 2047)
    assert str(error.value) == (
        f"{folder}: tokenizer.json: expected ids below the model's 2047 embeddings; found 2047"
        "\n\nhint: use the tokenizer of this model"
    )
