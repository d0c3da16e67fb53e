"""The tokenizer in a GGUF file.

llama.cpp splits text by a rule that a file names (`qwen2`); tokenizer.json spells its rule out.
So the name is written only if both rules are identical, and anything else that llama.cpp would do
differently is refused as well. One difference remains: llama.cpp never normalizes text, so it reads
decomposed letters (e and a combining accent) as they are, which the tokenizer composes first.
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
"""Pattern by which Qwen's tokenizer.json splits text: llama.cpp's `qwen2`."""
PLAIN_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "byte_fallback": False,
    "ignore_merges": False,
}
"""Settings of a tokenizer.json that llama.cpp's `gpt2` reproduces; "" counts as null."""
STRIPPING = ("single_word", "lstrip", "rstrip")
"""Options of added tokens that llama.cpp does not support."""
HINT = "only the tokenizers of Qwen2, Qwen2.5 and Qwen3 can be written to GGUF"


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Tokenizer data of a GGUF file."""

    tokens: tuple[str, ...]
    """By id, in the characters that represent bytes."""
    types: tuple[gguf.TokenType, ...]
    merges: tuple[str, ...]
    end_of_turn: int
    """Ends an answer."""
    beginning: int
    """Never added to a text; without one, llama.cpp would assume token 11."""
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
    """Read the tokenizer of a model folder.

    Args:
        folder: of the model.
        size: rows of the model's embedding; ids above the tokenizer's get filler tokens.

    Raises:
        ModelError: llama.cpp would tokenize differently; all reasons together.
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
    """Yield differences between llama.cpp and this tokenizer.json, as the library writes it."""
    for key, expected in PLAIN_BPE.items():
        found = content["model"].get(key, expected)
        if found != expected and not (expected is None and found == ""):
            problem = f"expected {json.dumps(expected)}; found {json.dumps(found)}"
            yield Fault(f"{where}: model.{key}", problem, HINT)
    if not _splits_as_qwen2(content["pre_tokenizer"]):
        problem = "splits text differently than Qwen2, which llama.cpp cannot reproduce"
        yield Fault(f"{where}: pre_tokenizer", problem, HINT)
    normalizer = content["normalizer"]
    if normalizer not in (None, {"type": "NFC"}):
        problem = f"expected NFC or none; found {json.dumps(normalizer)[:60]}"
        yield Fault(f"{where}: normalizer", problem, HINT)
    for token in content["added_tokens"]:
        if options := [key for key in STRIPPING if token[key]]:
            problem = (
                f"{token['content']} uses {', '.join(options)}, which llama.cpp does not support"
            )
            yield Fault(f"{where}: added_tokens", problem, HINT)


def _splits_as_qwen2(rule: Mapping[str, Any] | None) -> bool:
    """Return True if text is split by Qwen2's pattern and then mapped to byte characters."""
    steps = (rule or {}).get("pretokenizers", [])
    if len(steps) != 2:
        return False
    split, byte_level = steps
    return bool(
        split.get("type") == "Split"
        and split.get("pattern") == {"Regex": QWEN2_SPLIT}
        and (split.get("behavior"), split.get("invert")) == ("Isolated", False)
        and byte_level.get("type") == "ByteLevel"
        and (byte_level.get("add_prefix_space"), byte_level.get("use_regex")) == (False, False)
    )
