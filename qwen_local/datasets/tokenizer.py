"""Conversations to tokens, and which of these tokens are trained.

Masks are found by structure, never by searching for what was said:

1. Where the data hold the text of a control token (`<|im_end|>`), it is replaced by a lone
   surrogate, which text can never hold. The control tokens of the rendered conversation are
   then the template's own.
2. The rendered text is cut at its control tokens. What stands between `<|im_start|>assistant\\n`
   and `<|im_end|>` is an assistant turn, and there must be one for every assistant message.
3. A turn begins with what a generation prompt of this template already holds: `assistant\\n`,
   with an empty think block where the template writes one. That is context. The rest of the turn
   and its `<|im_end|>` are trained.
4. Each piece is encoded on its own, the data's `<|im_end|>` as the plain text that it is. Context
   and answer meet in training exactly where they meet in generation.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from jinja2 import TemplateSyntaxError
from tokenizers import Tokenizer

from qwen_local.datasets.faults import unusable
from qwen_local.datasets.template import Message, compile_template
from qwen_local.errors import DatasetError, Fault, ModelError

START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
HEADER = "assistant\n"
"""What follows START where an assistant turn begins."""

FIRST_SURROGATE, SURROGATES = 0xD800, 0x800

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tokenised:
    """One row: its tokens and which of them are trained, from one call so that they fit."""

    ids: list[int]
    """Shape [T]."""
    trained: list[bool]
    """Shape [T]: True where the token is to be learned."""
    literals: int = 0
    """How often the data hold the text of a control token; it was encoded as plain text."""
    reasoning_left_out: int = 0
    """Assistant messages whose reasoning the template did not write."""


@dataclass(frozen=True, slots=True)
class _Encoded:
    ids: list[int]
    turns: list[range]
    """Where in `ids` the trainable part of each complete assistant turn stands."""
    words: list[str]
    """The text of that part, without its end of turn."""


QUESTION = {"role": "user", "content": "?"}
"""The shortest conversation, to see what a template writes around it."""


class ChatTokenizer:
    """The tokenizer of a model together with its chat template."""

    def __init__(
        self, tokenizer: Tokenizer, template: str, variables: Mapping[str, str] | None = None
    ) -> None:
        """Put together what `load` reads.

        Args:
            tokenizer: with `<|im_start|>`, `<|im_end|>` and `<|endoftext|>` as special tokens.
            template: the Jinja source.
            variables: tokens that the template may name, such as `eos_token`.

        Raises:
            jinja2.TemplateSyntaxError: the template is none.
            DatasetError: the template cannot render a question alone.
        """
        # What a tokenizer.json says about these would silently cut or fill our rows.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # text stays text: control tokens come from us
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._control = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._surrogate = {t: chr(FIRST_SURROGATE + k) for k, t in enumerate(longest_first)}
        self._literal = {ord(s): text for text, s in self._surrogate.items()}
        self._template = compile_template(template)
        self._variables = dict(variables or {})
        self._heads = self._generation_heads()
        self.template_sha256 = hashlib.sha256(template.encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path) -> ChatTokenizer:
        """The tokenizer of a model folder.

        Reads tokenizer.json, tokenizer_config.json and chat_template.jinja, which wins over the
        template inside tokenizer_config.json.

        Raises:
            ModelError: a file is missing or cannot be used; all of them at once.
        """
        faults: list[Fault] = []
        tokenizer = _gather(faults, _read_tokenizer, folder / "tokenizer.json")
        config = _gather(faults, _read_config, folder / "tokenizer_config.json")
        named = None if config is None else _gather(faults, _read_template, folder, config)
        if tokenizer is None or config is None or named is None:
            raise ModelError(faults)
        file, template = named
        tokens = {key: _content(config.get(f"{key}_token")) for key in ("bos", "eos", "pad", "unk")}
        variables = {f"{key}_token": text for key, text in tokens.items() if text is not None}
        try:
            return cls(tokenizer, template, variables)
        except TemplateSyntaxError as error:
            where, problem = f"{file}:{error.lineno}", f"not a Jinja template: {error.message}"
            raise ModelError.at(where, problem, TEMPLATE_HINT) from None
        except DatasetError as error:
            problem = f"cannot render a single question: {error.faults[0].problem}"
            raise ModelError.at(str(file), problem, TEMPLATE_HINT) from None

    def check_fits(self, vocabulary: int, name: str) -> None:
        """Refuse a tokenizer whose ids go beyond the model's embedding.

        Raises:
            ModelError: an id is too large (one engine would fail on it, the other compute rubbish).
        """
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= vocabulary:
            raise ModelError.at(
                f"{name}: tokenizer.json",
                f"expected ids below the model's {vocabulary} embeddings; found {largest}",
                "take model and tokenizer from one place",
            )

    # --- text ---

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        enable_thinking: bool | None = None,
    ) -> str:
        """The conversation as the template writes it.

        Args:
            messages: the conversation.
            add_generation_prompt: whether the text ends where the assistant is to go on.
            enable_thinking: handed to the template, unless None.

        Raises:
            DatasetError: the template refuses the messages; `where` is a field.
        """
        options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt}
        if enable_thinking is not None:
            options["enable_thinking"] = enable_thinking
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                **self._variables,
                **options,
            )
        except Exception as error:  # the template is a program that we did not write
            problem = f"refused by the chat template: {type(error).__name__}: {error}"
            raise DatasetError.at("messages", problem) from None

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of these tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    # --- tokens ---

    @property
    def end_of_turn(self) -> int:
        """The id of `<|im_end|>`."""
        return self._special[END]

    @property
    def end_of_text(self) -> int:
        """The id of `<|endoftext|>`."""
        return self._special[END_OF_TEXT]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens after which generation stops."""
        return (self.end_of_turn, self.end_of_text)

    def encode_conversation(
        self, messages: Sequence[Message], *, train_on: Literal["assistant", "last"]
    ) -> Tokenised:
        """The whole conversation, with what the assistant wrote marked as trained.

        Args:
            messages: the conversation, with at least one assistant message.
            train_on: every assistant turn, or the last one alone.

        Raises:
            DatasetError: a text cannot be encoded, or the template not be masked exactly; `where`
                is a field of the conversation.
        """
        escaped, literals = self._escape(messages)
        rendered = self.render(escaped)
        encoded = self._encode(rendered)
        answers = [message for message in messages if message["role"] == "assistant"]
        if len(encoded.turns) != len(answers):
            raise DatasetError.at(
                "messages",
                "this chat template cannot be masked exactly: it should write one turn from "
                f"{START + HEADER!r} to {END!r} for each of {len(answers)} assistant messages; "
                f"found {len(encoded.turns)} in {self._restore(rendered)[:200]!r}",
                "use a model whose template writes ChatML, as those of Qwen do",
            )
        for index, (answer, words) in enumerate(zip(answers, encoded.words, strict=True)):
            said = answer["content"].rpartition("</think>")[2].strip()
            if said not in words:
                raise DatasetError.at(
                    "messages",
                    f"this chat template does not write what assistant message {index + 1} says: "
                    f"expected {said[:80]!r}; found {words[:80]!r}",
                    "use a model whose template writes answers as they are",
                )
        trained = [False] * len(encoded.ids)
        for turn in encoded.turns if train_on == "assistant" else encoded.turns[-1:]:
            trained[turn.start : turn.stop] = [True] * len(turn)
        left_out = sum(
            bool(_reasoning(answer)) and "</think>" not in words
            for answer, words in zip(answers, encoded.words, strict=True)
        )
        return Tokenised(encoded.ids, trained, literals, left_out)

    def encode_text(self, text: str) -> Tokenised:
        """Plain text and the end of text, all of it trained.

        Raises:
            DatasetError: the text cannot be encoded; `where` is `text`.
        """
        if problem := unusable(text):
            raise DatasetError.at("text", problem)
        ids = [*self._plain(text), self.end_of_text]
        return Tokenised(ids, [True] * len(ids), literals=len(self._control.findall(text)))

    def encode_prompt(
        self, messages: Sequence[Message], *, enable_thinking: bool | None = None
    ) -> list[int]:
        """The prompt of generation: the conversation, up to where the assistant goes on.

        Raises:
            DatasetError: as `encode_conversation`.
        """
        escaped, _ = self._escape(messages)
        rendered = self.render(escaped, add_generation_prompt=True, enable_thinking=enable_thinking)
        return self._encode(rendered).ids

    def begun(self, prompt: Sequence[int]) -> str:
        """What a prompt already holds of the assistant's turn, such as an open think block."""
        start = max((at for at, id in enumerate(prompt) if id == self._special[START]), default=0)
        return self.decode(prompt[start:]).removeprefix(HEADER)

    def thinking_as_trained(self) -> bool | None:
        """The `enable_thinking` whose prompt is the one that plain answers are trained after.

        Qwen3's hybrid template opens the last turn of a conversation with an empty think block,
        and a prompt only where thinking is off: an adapter of plain answers wants it off. None
        leaves it to the template.
        """
        rendered = self.render([QUESTION, {"role": "assistant", "content": "!"}])
        for thinking in (None, False, True):
            prompt = self.render([QUESTION], add_generation_prompt=True, enable_thinking=thinking)
            if rendered.startswith(f"{prompt}!"):
                return thinking
        return None

    # --- how ---

    def _generation_heads(self) -> list[str]:
        """Every way in which this template begins the assistant's turn, the longest first."""
        prompts = [
            self.render([QUESTION], add_generation_prompt=True, enable_thinking=thinking)
            for thinking in (None, True, False)
        ]
        heads = {prompt.rpartition(START)[2] for prompt in prompts}
        return sorted({HEADER, *(h for h in heads if h.startswith(HEADER))}, key=len, reverse=True)

    def _escape(self, messages: Sequence[Message]) -> tuple[list[dict[str, str]], int]:
        """The messages without the text of any control token, and how many were replaced."""
        faults, escaped, literals = [], [], 0
        for index, message in enumerate(messages):
            escaped.append(dict(message))
            for key, text in message.items():
                if problem := unusable(text):
                    faults.append(Fault(f"messages[{index}].{key}", problem))
                    continue
                escaped[-1][key], count = self._control.subn(
                    lambda match: self._surrogate[match[0]], text
                )
                literals += count
        if faults:
            raise DatasetError(faults)
        return escaped, literals

    def _restore(self, text: str) -> str:
        return text.translate(self._literal)

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _encode(self, rendered: str) -> _Encoded:
        """Tokens of an escaped, rendered conversation, and where its assistant turns stand."""
        ids: list[int] = []
        turns: list[range] = []
        words: list[str] = []
        pieces = self._control.split(rendered)  # text, control token, text, ..., text
        texts, controls = map(self._restore, pieces[::2]), pieces[1::2]
        for before, text, after in zip(["", *controls], texts, [*controls, ""], strict=True):
            if before == START and text.startswith(HEADER):
                head = next(head for head in self._heads if text.startswith(head))
                ids += self._plain(head)
                answer = len(ids)
                ids += self._plain(text[len(head) :])
                if after == END:
                    turns.append(range(answer, len(ids) + 1))
                    words.append(text[len(head) :])
            else:
                ids += self._plain(text)
            if after:
                ids.append(self._special[after])
        return _Encoded(ids, turns, words)


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The control tokens of a tokenizer (`<think>` and the like are words to it): text to id."""
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: id for id, token in added.items() if token.special}


def _reasoning(message: Message) -> str:
    """What the assistant thought, in either way of writing it down.

    >>> _reasoning({"content": "<think>\\nhm\\n</think>\\n\\nyes"})
    'hm'
    """
    if "reasoning_content" in message:
        return message["reasoning_content"].strip()
    thought, mark, _ = message["content"].partition("</think>")
    return thought.rpartition("<think>")[2].strip() if mark else ""


# --- the files of a model folder ---

FOLDER_HINT = "give the folder of a whole Qwen model, with its tokenizer"
TEMPLATE_HINT = "take chat_template.jinja from the instruct model of the same family"


def _gather(faults: list[Fault], read: Callable[..., T], *args: Any) -> T | None:
    """What `read` returns, or None with its faults added to the list."""
    try:
        return read(*args)
    except ModelError as error:
        faults += error.faults
        return None


def _read_tokenizer(file: Path) -> Tokenizer:
    if not file.is_file():
        raise ModelError.at(str(file), "no such file", FOLDER_HINT)
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ModelError.at(str(file), f"not a tokenizer: {error}", FOLDER_HINT) from None
    special = special_tokens(tokenizer)
    if missing := [token for token in (START, END, END_OF_TEXT) if token not in special]:
        problem = f"expected the special tokens of Qwen; missing: {', '.join(missing)}"
        raise ModelError.at(str(file), problem, "use a Qwen model and its own tokenizer.json")
    if len(special) > SURROGATES:
        problem = f"expected at most {SURROGATES} special tokens; found {len(special)}"
        raise ModelError.at(str(file), problem, "use a Qwen model and its own tokenizer.json")
    return tokenizer


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError.at(str(file), f"cannot be read: {error}", FOLDER_HINT) from None


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}  # everything in it that we use may also stand elsewhere, or be absent
    try:
        config = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise ModelError.at(str(file), f"not valid JSON: {error}", FOLDER_HINT) from None
    if not isinstance(config, dict):
        raise ModelError.at(str(file), "expected a JSON object", FOLDER_HINT)
    return config


def _read_template(folder: Path, config: Mapping[str, Any]) -> tuple[Path, str]:
    """The file that holds the chat template, and the template."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file, _read_text(file)
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        problem = "no chat template: neither this file nor `chat_template` in tokenizer_config.json"
        raise ModelError.at(str(file), problem, TEMPLATE_HINT)
    return folder / "tokenizer_config.json", template


def _content(token: object) -> str | None:
    """A token of tokenizer_config.json, which is written as text or as an object."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None
