"""The tokenizer of the embedded model, under the chat templates of Qwen that TRL ships."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.embedded import tiny_model_path

STOCK = (
    "qwen2_5",
    "qwen3",
    "qwen3_instruct_2507",
    "qwen3_5_think",
    "qwen3_5_nothink",
    "qwen3_6",
)
"""Qwen2.5-Coder has the template of Qwen2.5."""


@pytest.fixture(scope="session")
def tokenizer_file() -> Path:
    return tiny_model_path() / "tokenizer.json"


@pytest.fixture(scope="session")
def trl_templates() -> Path:
    """TRL's copies of the stock templates, and beside them the ones with generation marks."""
    trl = find_spec("trl")
    assert trl is not None and trl.origin is not None
    return Path(trl.origin).parent / "chat_templates"


@pytest.fixture(scope="session")
def qwen(tokenizer_file: Path, trl_templates: Path) -> dict[str, ChatTokenizer]:
    """Our tokenizer under each template, by the name that TRL gives it."""
    return {
        file.stem: ChatTokenizer(
            Tokenizer.from_file(str(tokenizer_file)),
            file.read_text(encoding="utf-8"),
            {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        )
        for name in STOCK
        for file in (trl_templates / f"{name}.jinja", trl_templates / f"{name}_training.jinja")
    }


@pytest.fixture(scope="session")
def oracle(tokenizer_file: Path) -> PreTrainedTokenizerFast:
    """The same tokenizer in the hands of transformers."""
    return PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))


@pytest.fixture(scope="session")
def tiny() -> ChatTokenizer:
    return ChatTokenizer.load(tiny_model_path())
