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
4. A turn is trained where it stands as it would as the last one, behind the very text of its
   generation prompt. Qwen3's hybrid template writes earlier turns without the think block of the
   last: such a conversation becomes several rows, each up to one answer. With a template that
   writes every turn in one way it stays one row.
5. Each piece is encoded on its own, the data's `<|im_end|>` as the plain text that it is. Context
   and answer meet in training exactly where they meet in generation.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateSyntaxError
from tokenizers import Tokenizer

from qwen_local.datasets.faults import unusable
from qwen_local.datasets.reasoning import split, without
from qwen_local.datasets.template import Message, Tool, compile_template
from qwen_local.datasets.tokenizer_files import TEMPLATE_HINT, read_files, special_tokens
from qwen_local.datasets.turns import (
    EMPTY_THINK,
    END,
    END_OF_TEXT,
    HEADER,
    START,
    Cut,
    Piece,
    answers,
    make_cut,
)
from qwen_local.errors import DatasetError, Fault, JobError, ModelError

FIRST_SURROGATE = 0xD800

TrainOn = Literal["assistant", "last"]
Thinking = Literal["auto", "keep", "drop", "empty"]
"""What becomes of the assistant's reasoning: docs/data.md defines it."""

QUESTION: Message = {"role": "user", "content": "?"}
"""The shortest conversation, to see what a template writes around it."""
JOIN_HINT = "join the two messages of the assistant, or set data.thinking to drop"
CHATML_HINT = "use a model whose template writes ChatML, as those of Qwen do"


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One row: its tokens and which of them count in the loss, from one call so that they fit."""

    ids: list[int]
    """Shape [T]."""
    supervised: list[bool]
    """Shape [T]: True where the token counts in the loss."""
    literals: int = 0
    """How often the data hold the text of a control token; it was encoded as plain text."""
    reasoning_left_out: int = 0
    """Trained turns whose reasoning the template did not write."""
    opening: str = ""
    """What a generation prompt holds of the last turn; nothing for plain text."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A row before its pieces are encoded."""

    pieces: Sequence[Piece]
    trained: frozenset[int]
    """Which of the pieces are learned, each with the control token after it."""
    literals: int
    reasoning_left_out: int
    opening: str


@dataclass(slots=True)
class _Row:
    """A row up to an answer, which earlier answers of the same conversation may join."""

    pieces: list[Piece]
    trained: list[int] = field(default_factory=list)
    left_out: int = 0

    def draft(self, literals: int) -> Draft:
        opening = self.pieces[-2].text
        return Draft(self.pieces, frozenset(self.trained), literals, self.left_out, opening)


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
        self._prompted = self._openings()
        longest_opening_first = sorted({HEADER, *self._prompted}, key=len, reverse=True)
        self._cut, self._cut_bare = (
            make_cut(self._control, longest_opening_first, self._restore, bare=bare)
            for bare in (False, True)
        )
        self._short: dict[str, list[int]] = {}
        self.template_sha256 = hashlib.sha256(template.encode()).hexdigest()
        self._made_of = tokenizer, template, self._variables
        self.tells_time = "strftime_now" in template
        """Whether what the template writes depends on the day."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatTokenizer, self._made_of

    @property
    def sha256(self) -> str:
        """Of all that tokens depend on, in hex."""
        tokenizer, template, variables = self._made_of
        said = json.dumps([tokenizer.to_str(), template, variables], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path) -> ChatTokenizer:
        """The tokenizer of a model folder.

        Raises:
            ModelError: a file is missing or cannot be used; all of them at once.
        """
        files = read_files(folder)
        try:
            return cls(files.tokenizer, files.template, files.variables)
        except TemplateSyntaxError as error:
            where = f"{files.template_file}:{error.lineno}"
            problem = f"not a Jinja template: {error.message}"
            raise ModelError.at(where, problem, TEMPLATE_HINT) from None
        except DatasetError as error:
            problem = f"cannot render a single question: {error.faults[0].problem}"
            raise ModelError.at(str(files.template_file), problem, TEMPLATE_HINT) from None

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

    def check_thinking(self, thinking: Thinking) -> None:
        """Refuse what this template cannot do.

        Raises:
            JobError: no generation prompt of it begins the answer in this way.
        """
        wanted = {"drop": HEADER, "empty": HEADER + EMPTY_THINK}.get(thinking)
        if wanted is None or wanted in self._prompted:
            return
        begins = " or ".join(repr(opening) for opening in self._prompted)
        raise JobError.at(
            "data.thinking",
            f"{thinking} trains answers after {wanted!r}, and the prompts of this model's chat "
            f"template begin them with {begins}",
            "set it to auto, or to "
            + ("empty" if HEADER + EMPTY_THINK in self._prompted else "drop"),
        )

    # --- text ---

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = False,
        enable_thinking: bool | None = None,
    ) -> str:
        """The conversation as the template writes it.

        Args:
            messages: the conversation.
            tools: the functions that it may call.
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
                tools=list(tools) or None,
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
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        untrained: frozenset[int] = frozenset(),
        train_on: TrainOn = "assistant",
        thinking: Thinking = "auto",
    ) -> list[Tokenized]:
        """The rows of one conversation: see `draft_conversation`."""
        drafts = self.draft_conversation(
            messages, tools=tools, untrained=untrained, train_on=train_on, thinking=thinking
        )
        return self.encode(drafts)

    def encode_text(self, text: str) -> Tokenized:
        """Plain text and the end of text: see `draft_text`."""
        return self.encode([self.draft_text(text)])[0]

    def draft_conversation(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        untrained: frozenset[int] = frozenset(),
        train_on: TrainOn = "assistant",
        thinking: Thinking = "auto",
    ) -> list[Draft]:
        """The rows of a conversation, with what the assistant wrote marked as trained.

        Args:
            messages: the conversation, with at least one assistant message.
            tools: the functions that it may call.
            untrained: places of assistant messages that are context only.
            train_on: every other assistant turn, or the last one alone.
            thinking: what becomes of the assistant's reasoning.

        Returns:
            Every trained turn once, the rows in the order of their last turns. Each ends with a
            trained turn: what follows it teaches nothing.

        Raises:
            DatasetError: a text cannot be encoded, or the template not be masked exactly; `where`
                is a field of the conversation.
        """
        if thinking in ("drop", "empty"):
            messages = [without(message) for message in messages]
        escaped, literals = self._escape(messages)
        functions, more = self._escape_tools(tools)
        said = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        wanted = [index for index in said if index not in untrained]
        cut = self._cut_bare if thinking == "drop" else self._cut
        rows: list[_Row] = []
        for index in reversed(wanted if train_on == "assistant" else wanted[-1:]):
            count = said.index(index) + 1
            turn = self._turn(
                escaped, index, functions, cut, messages[index], count, empty=thinking == "empty"
            )
            answer = len(turn) - 1
            left_out = (
                bool(split(messages[index]).reasoning) and "</think>" not in turn[answer].text
            )
            if left_out and thinking == "keep":
                raise DatasetError.at(
                    f"messages[{index}]",
                    "expected reasoning that the chat template writes (data.thinking: keep); "
                    "this template leaves it out",
                    "set data.thinking to drop, or use a model that reasons",
                )
            row = next((row for row in rows if row.pieces[: len(turn)] == turn), None)
            if row is None:
                rows.append(row := _Row(turn))
            row.trained.append(answer)
            row.left_out += left_out
        return [row.draft(literals + more) for row in reversed(rows)]

    def draft_text(self, text: str) -> Draft:
        """Plain text and the end of text, all of it trained.

        Raises:
            DatasetError: the text cannot be encoded; `where` is `text`.
        """
        if problem := unusable(text):
            raise DatasetError.at("text", problem)
        piece = Piece(text, END_OF_TEXT, answer=True)
        return Draft([piece], frozenset([0]), len(self._control.findall(text)), 0, "")

    def encode(self, drafts: Sequence[Draft]) -> list[Tokenized]:
        """Rows in tokens; many at once are quicker than one at a time."""
        texts = {piece.text for draft in drafts for piece in draft.pieces}
        texts -= self._short.keys()
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids_of = dict(zip(texts, (encoding.ids for encoding in encoded), strict=True))
        if len(self._short) < MOST_KEPT:
            self._short |= {text: ids for text, ids in ids_of.items() if len(text) < SHORT}
        rows = []
        for draft in drafts:
            ids: list[int] = []
            supervised: list[bool] = []
            for index, piece in enumerate(draft.pieces):
                found = self._short.get(piece.text)
                ids += ids_of[piece.text] if found is None else found
                if piece.control:
                    ids.append(self._special[piece.control])
                supervised += [index in draft.trained] * (len(ids) - len(supervised))
            rows.append(
                Tokenized(ids, supervised, draft.literals, draft.reasoning_left_out, draft.opening)
            )
        return rows

    # --- prompts ---

    def encode_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        enable_thinking: bool | None = None,
    ) -> list[int]:
        """The prompt of generation: the conversation, up to where the assistant goes on.

        Raises:
            DatasetError: as `draft_conversation`.
        """
        escaped, _ = self._escape(messages)
        functions, _ = self._escape_tools(tools)
        pieces = self._cut(
            self.render(
                escaped,
                tools=functions,
                add_generation_prompt=True,
                enable_thinking=enable_thinking,
            )
        )
        return self.encode([Draft(pieces, frozenset(), 0, 0, "")])[0].ids

    def begun(self, prompt: Sequence[int]) -> str:
        """What a prompt already holds of the assistant's turn, such as an open think block."""
        start = max((at for at, id in enumerate(prompt) if id == self._special[START]), default=0)
        return self.decode(prompt[start:]).removeprefix(HEADER)

    def thinking_after(self, opening: str) -> bool | None:
        """The `enable_thinking` whose prompt begins the answer in this way; None for the default.

        Args:
            opening: of trained rows.
        """
        return self._prompted.get(opening)

    def thinking_as_trained(self) -> bool | None:
        """The `enable_thinking` whose prompt is the one that plain answers are trained after.

        Qwen3's hybrid template opens the last turn of a conversation with an empty think block,
        and a prompt only where thinking is off: an adapter of plain answers wants it off. None
        leaves it to the template.
        """
        pieces = self._cut(self.render([QUESTION, {"role": "assistant", "content": "!"}]))
        said = answers(pieces)
        return self.thinking_after(pieces[said[-1] - 1].text) if said else None

    # --- how ---

    def _openings(self) -> dict[str, bool | None]:
        """Every way in which this template begins the assistant's turn, and how to ask for it."""
        openings: dict[str, bool | None] = {}
        for thinking in (None, True, False):  # the template's own way first
            prompt = self.render([QUESTION], add_generation_prompt=True, enable_thinking=thinking)
            opening = prompt.rpartition(START)[2]
            if opening.startswith(HEADER):
                openings.setdefault(opening, thinking)
        return openings

    def _turn(
        self,
        escaped: Sequence[Message],
        index: int,
        tools: Sequence[Tool],
        cut: Cut,
        message: Message,
        count: int,
        *,
        empty: bool,
    ) -> list[Piece]:
        """The conversation up to an assistant message, as the template writes it.

        Args:
            escaped: the messages.
            index: of the assistant message.
            tools: the functions that may be called.
            cut: cuts the text that is rendered.
            message: the assistant message as it is.
            count: assistant messages up to this one.
            empty: put an empty think block before the answer, where the template does not.

        Returns:
            Pieces: the last is the answer, the others are its generation prompt.

        Raises:
            DatasetError: the template does not write the one behind the other.
        """
        rendered = self.render(escaped[: index + 1], tools=tools)
        pieces = cut(rendered)
        turns = answers(pieces)
        if len(turns) != count:
            raise DatasetError.at(
                "messages",
                "this chat template cannot be masked exactly: it should write one turn from "
                f"{START + HEADER!r} to {END!r} for each of {count} assistant messages; "
                f"found {len(turns)} in {self._restore(rendered)[:200]!r}",
                CHATML_HINT,
            )
        turn = pieces[: turns[-1] + 1]
        if empty and turn[-2].text == HEADER:
            turn[-2] = turn[-2]._replace(text=HEADER + EMPTY_THINK)
        _check_said(message, turn[-1].text, index)
        if index == 0:  # nothing precedes it, so it is nothing that could be asked for
            return turn
        prompt = self.render(
            escaped[:index],
            tools=tools,
            add_generation_prompt=True,
            enable_thinking=self.thinking_after(turn[-2].text),
        )
        if cut(prompt)[: len(turn) - 1] != turn[:-1]:
            raise DatasetError.at(
                f"messages[{index}]",
                "this chat template cannot be masked exactly: it should write the answer behind "
                f"its generation prompt, which ends with {self._restore(prompt)[-100:]!r}; found "
                f"{self._restore(rendered)[-200:]!r}",
                JOIN_HINT if escaped[index - 1]["role"] == "assistant" else CHATML_HINT,
            )
        return turn

    def _escape(self, messages: Sequence[Message]) -> tuple[list[dict[str, Any]], int]:
        """The messages without the text of any control token, and how many were replaced."""
        faults: list[Fault] = []
        escaped, literals = [], 0
        for index, message in enumerate(messages):
            plain, count = self._escaped(message, f"messages[{index}]", faults)
            escaped.append(plain)
            literals += count
        if faults:
            raise DatasetError(faults)
        return escaped, literals

    def _escape_tools(self, tools: Sequence[Tool]) -> tuple[list[Any], int]:
        """The same of the functions that a conversation may call."""
        if not tools:
            return [], 0
        faults: list[Fault] = []
        escaped, literals = self._escaped(list(tools), "tools", faults)
        if faults:
            raise DatasetError(faults)
        return escaped, literals

    def _escaped(self, value: Any, where: str, faults: list[Fault]) -> tuple[Any, int]:
        """A JSON value without the text of any control token, and how many were replaced."""
        if isinstance(value, str):
            if problem := unusable(value):
                faults.append(Fault(where, problem))
                return value, 0
            return self._control.subn(lambda match: self._surrogate[match[0]], value)
        if isinstance(value, Mapping):
            pairs = {
                self._escaped(key, where, faults)[0]: self._escaped(item, f"{where}.{key}", faults)
                for key, item in value.items()
            }
            return {key: item for key, (item, _) in pairs.items()}, sum(
                count for _, count in pairs.values()
            )
        if isinstance(value, list):
            items = [self._escaped(v, f"{where}[{i}]", faults) for i, v in enumerate(value)]
            return [item for item, _ in items], sum(count for _, count in items)
        return value, 0

    def _restore(self, text: str) -> str:
        return text.translate(self._literal)


SHORT, MOST_KEPT = 16, 1_000
"""Characters of a text, and the number of texts, whose tokens are kept: new lines and headers."""


def _check_said(message: Message, words: str, index: int) -> None:
    """Refuse a template that does not write what an assistant message says.

    Args:
        message: what it says.
        words: what the template makes of it.
        index: of the message.
    """
    said = [split(message).words.strip()]
    said += [call["function"]["name"] for call in message.get("tool_calls") or ()]
    missing = next((part for part in said if part not in words), None)
    if missing is not None:
        raise DatasetError.at(
            f"messages[{index}]",
            "this chat template does not write what the assistant says: "
            f"expected {missing[:80]!r}; found {words[:80]!r}",
            "use a model whose template writes answers as they are",
        )
