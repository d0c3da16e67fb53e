"""Tokenize conversations and mark the supervised tokens.

Masks are derived from the structure of the rendered text, never by searching for the answers:

1. If the data contain the text of a control token (`<|im_end|>`), that text is replaced by a lone
   surrogate, which valid text cannot contain. All control tokens in the rendered conversation are
   then written by the template.
2. The rendered text is cut at its control tokens. The text between `<|im_start|>assistant\\n` and
   `<|im_end|>` is an assistant turn; there must be one for every assistant message.
3. A turn starts with the text that the generation prompt already contains: `assistant\\n`, plus an
   empty think block if the template writes one. This is context. The rest of the turn and its
   `<|im_end|>` are supervised.
4. A turn is supervised only directly after the text of its generation prompt, as in generation.
   Qwen3's hybrid template writes earlier turns without the think block of the last turn. Such a
   conversation becomes several rows, each up to one answer. With a template that writes every turn
   the same way, it stays one row.
5. Each piece is encoded separately, and `<|im_end|>` in the data is encoded as plain text. So the
   token boundary between context and answer is the same in training and in generation.
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
"""Values of `data.thinking`; docs/data.md defines them."""

SHORT_PROMPT: Message = {"role": "user", "content": "?"}
"""Minimal conversation, for finding the text that a template adds."""
JOIN_HINT = "join the two assistant messages, or set data.thinking to drop"
CHATML_HINT = "use a model with a ChatML template, such as a Qwen model"


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One row: token ids and their supervision mask."""

    ids: list[int]
    """Token ids, shape [T]."""
    supervised: list[bool]
    """Supervision mask, shape [T]: True for tokens that count in the loss."""
    literals: int = 0
    """Number of control-token texts in the data, which were encoded as plain text."""
    reasoning_left_out: int = 0
    """Number of supervised turns whose reasoning the template omits."""
    opening: str = ""
    """Start of the last turn that the generation prompt contains; empty for plain text."""


@dataclass(frozen=True, slots=True)
class RowDraft:
    """A row before encoding."""

    pieces: Sequence[Piece]
    trained: frozenset[int]
    """Indices of the supervised pieces; the control token after each is supervised too."""
    literals: int
    reasoning_left_out: int
    opening: str


@dataclass(slots=True)
class _Row:
    """A row up to one answer; earlier answers with the same prefix are added to it."""

    pieces: list[Piece]
    trained: list[int] = field(default_factory=list)
    left_out: int = 0

    def draft(self, literals: int) -> RowDraft:
        opening = self.pieces[-2].text
        return RowDraft(self.pieces, frozenset(self.trained), literals, self.left_out, opening)


class ChatTokenizer:
    """A model's tokenizer and chat template."""

    def __init__(
        self, tokenizer: Tokenizer, template: str, variables: Mapping[str, str] | None = None
    ) -> None:
        """Make the tokenizer from the parts that `load` reads.

        Args:
            tokenizer: must have the special tokens `<|im_start|>`, `<|im_end|>`, `<|endoftext|>`.
            template: Jinja source of the chat template.
            variables: special tokens that the template can refer to, such as `eos_token`.

        Raises:
            jinja2.TemplateSyntaxError: the template is not valid Jinja.
            DatasetError: the template cannot render a single user message.
        """
        # Settings in tokenizer.json would silently truncate or pad our rows.
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
        self._thinking_of_opening = self._openings()
        longest_opening_first = sorted({HEADER, *self._thinking_of_opening}, key=len, reverse=True)
        self._cut, self._cut_bare = (
            make_cut(self._control, longest_opening_first, self._restore, bare=bare)
            for bare in (False, True)
        )
        self._cache: dict[str, list[int]] = {}
        self.template_sha256 = hashlib.sha256(template.encode()).hexdigest()
        self._arguments = tokenizer, template, self._variables
        self.depends_on_date = "strftime_now" in template
        """True if the rendered text depends on the current date."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatTokenizer, self._arguments

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of everything that token ids depend on."""
        tokenizer, template, variables = self._arguments
        content = json.dumps([tokenizer.to_str(), template, variables], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path) -> ChatTokenizer:
        """Load the tokenizer of a model folder.

        Raises:
            ModelError: files are missing or invalid; the error lists all of them.
        """
        files = read_files(folder)
        try:
            return cls(files.tokenizer, files.template, files.variables)
        except TemplateSyntaxError as error:
            where = f"{files.template_file}:{error.lineno}"
            problem = f"not a Jinja template: {error.message}"
            raise ModelError.at(where, problem, TEMPLATE_HINT) from None
        except DatasetError as error:
            problem = f"cannot render a single user message: {error.faults[0].problem}"
            raise ModelError.at(str(files.template_file), problem, TEMPLATE_HINT) from None

    def check_fits(self, vocabulary: int, name: str) -> None:
        """Check that all token ids fit the model's embedding.

        Raises:
            ModelError: an id is too large; one engine would fail, the other compute garbage.
        """
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= vocabulary:
            raise ModelError.at(
                f"{name}: tokenizer.json",
                f"expected ids below the model's {vocabulary} embeddings; found {largest}",
                "use the tokenizer of this model",
            )

    def check_thinking(self, thinking: Thinking) -> None:
        """Check that the template supports this value of `data.thinking`.

        Raises:
            JobError: no generation prompt of the template starts the answer in this way.
        """
        required = {"drop": HEADER, "empty": HEADER + EMPTY_THINK}.get(thinking)
        if required is None or required in self._thinking_of_opening:
            return
        openings = " or ".join(repr(opening) for opening in self._thinking_of_opening)
        raise JobError.at(
            "data.thinking",
            f"{thinking} trains answers after {required!r}, but the prompts of this model's chat "
            f"template start them with {openings}",
            "set it to auto, or to "
            + ("empty" if HEADER + EMPTY_THINK in self._thinking_of_opening else "drop"),
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
        """Render a conversation with the chat template.

        Args:
            messages: the conversation.
            tools: functions that the assistant may call.
            add_generation_prompt: True to end with the start of an assistant turn.
            enable_thinking: passed to the template unless None.

        Raises:
            DatasetError: the template rejects the messages; `where` is a field.
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
        except Exception as error:  # the template is a program and can raise anything
            problem = f"rejected by the chat template: {type(error).__name__}: {error}"
            raise DatasetError.at("messages", problem) from None

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode token ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    # --- tokens ---

    @property
    def end_of_turn(self) -> int:
        """Id of `<|im_end|>`."""
        return self._special[END]

    @property
    def end_of_text(self) -> int:
        """Id of `<|endoftext|>`."""
        return self._special[END_OF_TEXT]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end generation."""
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
        """Tokenize one conversation; see `draft_conversation`."""
        drafts = self.draft_conversation(
            messages, tools=tools, untrained=untrained, train_on=train_on, thinking=thinking
        )
        return self.encode(drafts)

    def encode_text(self, text: str) -> Tokenized:
        """Tokenize plain text and the end of text; see `draft_text`."""
        return self.encode([self.draft_text(text)])[0]

    def draft_conversation(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        untrained: frozenset[int] = frozenset(),
        train_on: TrainOn = "assistant",
        thinking: Thinking = "auto",
    ) -> list[RowDraft]:
        """Make the rows of a conversation, with the assistant's text marked as supervised.

        Args:
            messages: the conversation, with at least one assistant message.
            tools: functions that the assistant may call.
            untrained: indices of assistant messages that are only context.
            train_on: all other assistant turns, or only the last of them.
            thinking: handling of the assistant's reasoning.

        Returns:
            Rows in the order of their last turns; each supervised turn is supervised in one row. A
            row ends with a supervised turn, because later text would not count in the loss.

        Raises:
            DatasetError: a text cannot be encoded, or the template cannot be masked exactly;
                `where` is a field of the conversation.
        """
        if thinking in ("drop", "empty"):
            messages = [without(message) for message in messages]
        escaped, literals = self._escape(messages)
        functions, more = self._escape_tools(tools)
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        supervised = [index for index in turns if index not in untrained]
        cut = self._cut_bare if thinking == "drop" else self._cut
        rows: list[_Row] = []
        for index in reversed(supervised if train_on == "assistant" else supervised[-1:]):
            count = turns.index(index) + 1
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
                    "data.thinking is keep, but the chat template omits the reasoning of this turn",
                    "set data.thinking to drop, or use a reasoning model",
                )
            # In backward order, a later row that starts with this turn can train on it as well.
            row = next((row for row in rows if row.pieces[: len(turn)] == turn), None)
            if row is None:
                rows.append(row := _Row(turn))
            row.trained.append(answer)
            row.left_out += left_out
        return [row.draft(literals + more) for row in reversed(rows)]

    def draft_text(self, text: str) -> RowDraft:
        """Make the row of a plain text: all of it, and the end of text, is supervised.

        Raises:
            DatasetError: the text cannot be encoded; `where` is `text`.
        """
        if problem := unusable(text):
            raise DatasetError.at("text", problem)
        piece = Piece(text, END_OF_TEXT, answer=True)
        return RowDraft([piece], frozenset([0]), len(self._control.findall(text)), 0, "")

    def encode(self, drafts: Sequence[RowDraft]) -> list[Tokenized]:
        """Encode rows; a large batch is faster than single rows."""
        texts = {piece.text for draft in drafts for piece in draft.pieces}
        texts -= self._cache.keys()
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids_of = dict(zip(texts, (encoding.ids for encoding in encoded), strict=True))
        if len(self._cache) < MAX_CACHED_TEXTS:
            self._cache |= {
                text: ids for text, ids in ids_of.items() if len(text) < CACHED_TEXT_LENGTH
            }
        rows = []
        for draft in drafts:
            ids: list[int] = []
            supervised: list[bool] = []
            for index, piece in enumerate(draft.pieces):
                found = self._cache.get(piece.text)
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
        """Tokenize the generation prompt: the conversation and the start of an assistant turn.

        Raises:
            DatasetError: see `draft_conversation`.
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
        return self.encode([RowDraft(pieces, frozenset(), 0, 0, "")])[0].ids

    def opening_of(self, prompt: Sequence[int]) -> str:
        """Return the start of the assistant turn in a prompt, such as an open think block."""
        start = max((at for at, id in enumerate(prompt) if id == self._special[START]), default=0)
        return self.decode(prompt[start:]).removeprefix(HEADER)

    def thinking_after(self, opening: str) -> bool | None:
        """Return the `enable_thinking` value whose prompt ends with this opening.

        Args:
            opening: `Tokenized.opening` of training rows.

        Returns:
            None if the template's default prompt ends with it.
        """
        return self._thinking_of_opening.get(opening)

    def thinking_as_trained(self) -> bool | None:
        """Return the `enable_thinking` value whose prompt precedes plain answers in training.

        Qwen3's hybrid template starts the last turn of a conversation with an empty think block,
        but a prompt only if thinking is off. An adapter trained on plain answers therefore needs
        thinking off. None means the template's default.
        """
        pieces = self._cut(self.render([SHORT_PROMPT, {"role": "assistant", "content": "!"}]))
        turns = answers(pieces)
        return self.thinking_after(pieces[turns[-1] - 1].text) if turns else None

    # --- internals ---

    def _openings(self) -> dict[str, bool | None]:
        """Map every possible start of an assistant turn to its `enable_thinking` value."""
        openings: dict[str, bool | None] = {}
        for thinking in (None, True, False):  # the template's default first
            prompt = self.render(
                [SHORT_PROMPT], add_generation_prompt=True, enable_thinking=thinking
            )
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
        """Render the conversation up to an assistant message and cut it into pieces.

        Args:
            escaped: messages with escaped control tokens.
            index: index of the assistant message.
            tools: functions that the assistant may call.
            cut: function that cuts the rendered text.
            message: the original assistant message.
            count: number of assistant messages up to and including this one.
            empty: True to insert an empty think block before the answer if there is none.

        Returns:
            Pieces: the last is the answer, the others are its generation prompt.

        Raises:
            DatasetError: the template does not write the answer directly after its prompt.
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
        _check_complete(message, turn[-1].text, index)
        if index == 0:  # there is no generation prompt to compare with
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
                "this chat template cannot be masked exactly: it should write the answer after "
                f"its generation prompt, which ends with {self._restore(prompt)[-100:]!r}; found "
                f"{self._restore(rendered)[-200:]!r}",
                JOIN_HINT if escaped[index - 1]["role"] == "assistant" else CHATML_HINT,
            )
        return turn

    def _escape(self, messages: Sequence[Message]) -> tuple[list[dict[str, Any]], int]:
        """Escape control-token texts in the messages; also return their number."""
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
        """Escape control-token texts in the tools; also return their number."""
        if not tools:
            return [], 0
        faults: list[Fault] = []
        escaped, literals = self._escaped(list(tools), "tools", faults)
        if faults:
            raise DatasetError(faults)
        return escaped, literals

    def _escaped(self, value: Any, where: str, faults: list[Fault]) -> tuple[Any, int]:
        """Escape control-token texts in a JSON value; also return their number."""
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


CACHED_TEXT_LENGTH, MAX_CACHED_TEXTS = 16, 1_000
"""Limits of the token cache for short texts, such as headers and line feeds: maximum characters of
a text, and maximum number of texts."""


def _check_complete(message: Message, rendered: str, index: int) -> None:
    """Check that the template writes the whole content of an assistant message.

    Args:
        message: the assistant message.
        rendered: text of the rendered turn.
        index: index of the message.

    Raises:
        DatasetError: the answer or the name of a called function is missing.
    """
    required = [split(message).words.strip()]
    required += [call["function"]["name"] for call in message.get("tool_calls") or ()]
    missing = next((part for part in required if part not in rendered), None)
    if missing is not None:
        raise DatasetError.at(
            f"messages[{index}]",
            "this chat template does not write the whole answer: "
            f"expected {missing[:80]!r}; found {rendered[:80]!r}",
            "use a model whose template writes answers unchanged",
        )
