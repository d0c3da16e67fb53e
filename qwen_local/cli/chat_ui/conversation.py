"""The conversation with one model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from qwen_local.backends.base import Sampling, Session
from qwen_local.cli.chat_ui.display import Display, TextOutput
from qwen_local.cli.chat_ui.terminal import AnswerStop, ctrl_c_stops_answer
from qwen_local.console.signals import Stopped
from qwen_local.inference.generator import Answer, Messages, Prompt, system_message
from qwen_local.inference.text import CLOSE, OPEN, Thoughts


class ChatModel(Protocol):
    """The methods of `qwen_local.inference.generator.Generator` that a conversation needs."""

    @property
    def positions(self) -> int:
        """Maximum number of tokens in a conversation."""
        ...

    @property
    def trained_length(self) -> int | None:
        """Maximum row length that the adapter was trained on, if known."""
        ...

    def session(self) -> Session:
        """See `Generator.session`."""
        ...

    def prompt(self, messages: Messages) -> Prompt:
        """See `Generator.prompt`."""
        ...

    def stream(
        self,
        session: Session,
        prompt: Prompt,
        *,
        max_tokens: int,
        sampling: Sampling,
        show: Callable[[str], bool],
    ) -> Answer:
        """See `Generator.stream`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str
    """Answer including the reasoning; the chat template removes it where necessary."""
    complete: bool
    """False if the answer was stopped or reached a limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedQuestion:
    """A question with its history, ready to be answered."""

    before: tuple[Turn, ...]
    question: str
    prompt: Prompt
    room: int
    """Maximum number of tokens in the answer."""


class NoRoomError(Exception):
    """A question does not fit into the context. The message contains a hint."""


class Conversation:
    """The history of one model and its generation session."""

    def __init__(
        self,
        model: ChatModel,
        *,
        name: str,
        display: Display,
        interactive: bool,
        max_tokens: int,
        hide_thinking: bool,
    ) -> None:
        """Start an empty conversation.

        Args:
            model: the model that answers.
            name: name of the model, shown if there are several.
            display: shows the answers.
            interactive: True if Ctrl+C stops an answer, not the program.
            max_tokens: maximum answer length; the context can limit it further.
            hide_thinking: True to hide the reasoning.
        """
        self.name = name
        self._model = model
        self._display = display
        self._interactive = interactive
        self._max_tokens = max_tokens
        self._hide_thinking = hide_thinking
        self._session = model.session()
        self._before: tuple[Turn, ...] = ()  # turns before the last question
        self._warned_of_length = False
        self.turns: tuple[Turn, ...] = ()
        """All turns so far."""

    def clear(self) -> None:
        """Remove all turns."""
        self.turns = self._before = ()
        self._session = self._model.session()  # frees the memory of the old session

    def messages(self, system: str | None) -> Messages:
        """Return the whole conversation."""
        return _messages(system, self.turns)

    def ask(self, question: str, *, system: str | None, again: bool) -> PreparedQuestion:
        """Prepare a question; this computes nothing yet.

        Args:
            question: message of the user.
            system: the system message.
            again: True to replace the last question.

        Raises:
            DatasetError: the question cannot be encoded, or the template rejects it.
            NoRoomError: the context has no room for an answer.
        """
        before = self._before if again else self.turns
        self._before = before
        asked = {"role": "user", "content": question}
        prompt = self._model.prompt([*_messages(system, before), asked])
        room = self._model.positions - len(prompt.ids)
        if room < 1:
            alone = self._model.prompt([*system_message(system), asked]) if before else prompt
            fits = len(alone.ids) < self._model.positions
            raise NoRoomError(
                f"the conversation would have {len(prompt.ids)} tokens, but the model has only "
                f"{self._model.positions} positions; the question was not sent\n\nhint: "
                + ("use /clear to remove earlier turns" if fits else "shorten the question")
            )
        trained = self._model.trained_length
        if trained is not None and len(prompt.ids) > trained and not self._warned_of_length:
            self._warned_of_length = True
            self._display.show_message(
                self.name,
                f"(the conversation has {len(prompt.ids)} tokens, but the adapter was trained on "
                f"rows of at most {trained}: answers may get worse; /clear starts over)",
            )
        return PreparedQuestion(before=before, question=question, prompt=prompt, room=room)

    def answer(self, asked: PreparedQuestion, *, sampling: Sampling) -> None:
        """Generate the answer, and add the turn unless the answer is empty."""
        opening = asked.prompt.opening
        view = _AnswerView(
            self._display.start(self.name),
            thinking=bool(opening),
            hidden=self._hide_thinking,
            show_thinking=lambda: self._display.show_thinking(self.name),
        )
        view.show(opening)
        pieces: list[str] = []
        reason = "interrupted"
        try:
            with self._stopping() as stop:

                def show(text: str) -> bool:
                    stop.started = True
                    pieces.append(text)
                    view.show(text)
                    return not stop.requested

                answer = self._model.stream(
                    self._session,
                    asked.prompt,
                    max_tokens=min(self._max_tokens, asked.room),
                    sampling=sampling,
                    show=show,
                )
                reason = answer.finish_reason
        except KeyboardInterrupt as interrupt:
            if not self._interactive or isinstance(interrupt, Stopped):
                raise
        view.end()
        text = "".join(pieces)
        if why := self._why_it_ended(reason, text, asked.room):
            self._display.show_message(self.name, why)
        if text or reason == "stop":
            content = _closed(opening + text).replace("\0", "")  # valid text has no NUL
            turn = Turn(question=asked.question, answer=content, complete=reason == "stop")
            self.turns = (*asked.before, turn)

    def _stopping(self) -> AbstractContextManager[AnswerStop]:
        return ctrl_c_stops_answer() if self._interactive else nullcontext(AnswerStop())

    def _why_it_ended(self, reason: str, text: str, room: int) -> str | None:
        """Return the reason why an answer ended, unless the model ended it."""
        if reason == "interrupted" and not text:
            return "(stopped before the first token; the question is removed, /retry asks it again)"
        if reason == "interrupted":
            return "(stopped)"
        if reason == "length" and room <= self._max_tokens:
            positions = self._model.positions
            return f"(cut off: the context of {positions} tokens is full; use /clear)"
        if reason == "length":
            return f"(cut off after {self._max_tokens} tokens; see --max-tokens)"
        return None if text.strip() else "(empty answer)"


def _messages(system: str | None, turns: tuple[Turn, ...]) -> Messages:
    messages = system_message(system)
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    return messages


class _AnswerView:
    """Prints one answer: the reasoning is dimmed or hidden, and a line feed follows."""

    def __init__(
        self, output: TextOutput, *, thinking: bool, hidden: bool, show_thinking: Callable[[], None]
    ) -> None:
        self._output = output
        self._thoughts = Thoughts(thinking=thinking)
        self._hidden = hidden
        self._show_thinking = show_thinking
        self._thinking_shown = False
        self._last = ""  # the last character that was printed

    def show(self, text: str) -> None:
        for thought, part in self._thoughts.add(text):
            self._show(thought, part)

    def end(self) -> None:
        for thought, part in self._thoughts.end():
            self._show(thought, part)
        if self._last not in ("", "\n"):
            self._output.write("\n")

    def _show(self, thought: bool, text: str) -> None:
        if thought and self._hidden:
            if not self._thinking_shown and text.replace(OPEN, "").replace(CLOSE, "").strip():
                self._thinking_shown = True
                self._show_thinking()
            return
        if self._hidden and not self._last:
            text = text.lstrip("\n")  # line feeds between reasoning and answer
        if text:
            self._output.write(text, dim=thought)
            self._last = text[-1]


def _closed(answer: str) -> str:
    """Close an open think block, because templates only remove complete blocks."""
    is_open = answer.lstrip().startswith(OPEN) and CLOSE not in answer
    return f"{answer}\n{CLOSE}\n\n" if is_open else answer
