"""The tokenizer as llama.cpp is to have it.

llama.cpp cuts text into words by a rule that it knows by name, and `qwen2` is the name of one. A
tokenizer.json says its rule in full. So the name is written only where the rule is that one, to the
letter; everything else that llama.cpp would do differently is refused as well. It never normalizes
text: what a user types in decomposed letters (e and a combining accent) it reads as they stand,
where the tokenizer composes them first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.datasets.tokenizer_files import read_files
from qwen_local.errors import Fault, ModelError

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen's tokenizer.json cuts text: what llama.cpp calls `qwen2`."""
PLAIN_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "byte_fallback": False,
    "ignore_merges": False,
}
"""The model of tokenizer.json that llama.cpp takes for `gpt2`; "" counts as null."""
STRIPPING = ("single_word", "lstrip", "rstrip")
"""What added tokens may ask for, and llama.cpp does not do."""
HINT = "GGUF files are written for the tokenizers of Qwen2, Qwen2.5 and Qwen3 only"


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """What a GGUF file says of tokens."""

    tokens: tuple[str, ...]
    """By id, in the letters that stand for bytes."""
    types: tuple[gguf.TokenType, ...]
    merges: tuple[str, ...]
    end_of_turn: int
    """Where an answer ends."""
    beginning: int
    """Never written before a text; llama.cpp would take token 11 for it if none were named."""
    padding: int
    template: str
    """The chat template, in Jinja."""

    def add_to(self, writer: gguf.GGUFWriter, *, chat_template: bool) -> None:
        """Add it to a file, with or without the chat template."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_eos_token_id(self.end_of_turn)
        writer.add_bos_token_id(self.beginning)
        writer.add_pad_token_id(self.padding)
        writer.add_add_bos_token(False)
        if chat_template:
            writer.add_chat_template(self.template)


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The tokenizer of a model's folder.

    Args:
        folder: of the model.
        size: of the model's embedding; ids beyond the tokenizer's are filled up.

    Raises:
        ModelError: llama.cpp would make other tokens of the same text; all reasons at once.
    """
    chat = ChatTokenizer.load(folder)
    chat.check_fits(size, str(folder))
    files = read_files(folder)
    content: dict[str, Any] = json.loads(files.tokenizer.to_str())
    if faults := list(_differences(content, str(folder / "tokenizer.json"))):
        raise ModelError(faults)
    tokens = [f"[PAD{id}]" for id in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, id in content["model"]["vocab"].items():
        tokens[id], types[id] = token, gguf.TokenType.NORMAL
    for added in content["added_tokens"]:
        special = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], special

    def id_of(variable: str) -> int:
        named = files.tokenizer.token_to_id(files.variables.get(variable, ""))
        return chat.end_of_text if named is None else int(named)

    return Vocabulary(
        tokens=tuple(tokens),
        types=tuple(types),
        merges=tuple(" ".join(pair) for pair in content["model"]["merges"]),
        end_of_turn=chat.end_of_turn,
        beginning=id_of("bos_token"),
        padding=id_of("pad_token"),
        template=files.template,
    )


def _differences(content: Mapping[str, Any], where: str) -> Iterator[Fault]:
    """What llama.cpp would do otherwise than this tokenizer.json, as the library writes it."""
    for key, wanted in PLAIN_BPE.items():
        found = content["model"].get(key, wanted)
        if found != wanted and not (wanted is None and found == ""):
            problem = f"expected {json.dumps(wanted)}; found {json.dumps(found)}"
            yield Fault(f"{where}: model.{key}", problem, HINT)
    if not _cuts_as_qwen2(content["pre_tokenizer"]):
        problem = "cuts text into words in another way than Qwen2, which llama.cpp would not follow"
        yield Fault(f"{where}: pre_tokenizer", problem, HINT)
    normalizer = content["normalizer"]
    if normalizer not in (None, {"type": "NFC"}):
        problem = f"expected NFC or none; found {json.dumps(normalizer)[:60]}"
        yield Fault(f"{where}: normalizer", problem, HINT)
    for token in content["added_tokens"]:
        if asked := [key for key in STRIPPING if token[key]]:
            problem = f"{token['content']} asks for {', '.join(asked)}, which llama.cpp cannot do"
            yield Fault(f"{where}: added_tokens", problem, HINT)


def _cuts_as_qwen2(rule: Mapping[str, Any] | None) -> bool:
    """Whether text is cut by Qwen2's pattern, and then written in the letters of bytes."""
    steps = (rule or {}).get("pretokenizers", [])
    if len(steps) != 2:
        return False
    split, letters = steps
    return bool(
        split.get("type") == "Split"
        and split.get("pattern") == {"Regex": QWEN2_SPLIT}
        and (split.get("behavior"), split.get("invert")) == ("Isolated", False)
        and letters.get("type") == "ByteLevel"
        and (letters.get("add_prefix_space"), letters.get("use_regex")) == (False, False)
    )
