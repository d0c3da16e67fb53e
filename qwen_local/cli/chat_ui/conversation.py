"""What one model was asked and said, and its next answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from qwen_local.backends.base import Sampling, Session
from qwen_local.cli.chat_ui.stage import Page, Stage
from qwen_local.cli.chat_ui.terminal import Stop, stoppable
from qwen_local.console.signals import Stopped
from qwen_local.inference.generator import Answer, Messages, Prompt, system_message
from qwen_local.inference.text import CLOSE, OPEN, Thoughts


class Model(Protocol):
    """What a conversation is held with: `qwen_local.inference.generator.Answerer`."""

    @property
    def positions(self) -> int:
        """Tokens that a conversation can have."""
        ...

    @property
    def trained_length(self) -> int | None:
        """Tokens that an adapter has seen together, where that is known."""
        ...

    def session(self) -> Session:
        """See `Answerer.session`."""
        ...

    def prompt(self, messages: Messages) -> Prompt:
        """See `Answerer.prompt`."""
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
        """See `Answerer.stream`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str
    """What the model said, its thoughts included: a template leaves them out where it should."""
    whole: bool
    """False where the answer was stopped, or cut off at a limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question with all before it, ready to be answered."""

    before: tuple[Turn, ...]
    question: str
    prompt: Prompt
    room: int
    """Tokens that an answer can have."""


class NoRoomError(Exception):
    """A question does not fit behind its conversation. The message says what to do."""


class Conversation:
    """One model's side of a talk: its own history, and what was computed of it."""

    def __init__(
        self,
        model: Model,
        *,
        name: str,
        stage: Stage,
        interactive: bool,
        max_tokens: int,
        hide_thinking: bool,
    ) -> None:
        """Begin with nothing said.

        Args:
            model: who answers.
            name: of this voice, where there are several.
            stage: takes the answers.
            interactive: whether Ctrl+C stops an answer, and not the program.
            max_tokens: the longest answer; less where the context ends.
            hide_thinking: whether thoughts are left out of what is shown.
        """
        self.name = name
        self._model = model
        self._stage = stage
        self._interactive = interactive
        self._max_tokens = max_tokens
        self._hide_thinking = hide_thinking
        self._session = model.session()
        self._before: tuple[Turn, ...] = ()  # the last question
        self._beyond = False  # that it was told: longer than the adapter was trained on
        self.turns: tuple[Turn, ...] = ()
        """What was said."""

    def clear(self) -> None:
        """Forget everything."""
        self.turns = self._before = ()
        self._session = self._model.session()  # gives back its memory, too

    def messages(self, system: str | None) -> Messages:
        """All that was said."""
        return _messages(system, self.turns)

    def ask(self, question: str, *, system: str | None, again: bool) -> Asked:
        """Put a question behind what was said; nothing is computed yet.

        Args:
            question: what the user says.
            system: the system message.
            again: whether it takes the place of the last question.

        Raises:
            DatasetError: the question cannot be encoded, or the template refuses it.
            NoRoomError: the model has no positions left for an answer.
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
                f"the conversation would have {len(prompt.ids)} tokens, and the model has "
                f"{self._model.positions} positions: nothing was sent\n\nhint: "
                + ("/clear forgets what was said before" if fits else "shorten the question")
            )
        trained = self._model.trained_length
        if trained is not None and len(prompt.ids) > trained and not self._beyond:
            self._beyond = True
            self._stage.say(
                self.name,
                f"(the conversation has {len(prompt.ids)} tokens, and the adapter was trained on "
                f"at most {trained} together: it may lose its way; /clear begins again)",
            )
        return Asked(before=before, question=question, prompt=prompt, room=room)

    def answer(self, asked: Asked, *, sampling: Sampling) -> None:
        """Answer, and keep question and answer where something was said."""
        opening = asked.prompt.opening
        view = _View(
            self._stage.begin(self.name),
            thinking=bool(opening),
            hidden=self._hide_thinking,
            told=lambda: self._stage.thinks(self.name),
        )
        view.show(opening)
        said: list[str] = []
        reason = "interrupted"
        try:
            with self._stopping() as stop:

                def show(text: str) -> bool:
                    stop.coming = True
                    said.append(text)
                    view.show(text)
                    return not stop.asked

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
        text = "".join(said)
        if why := self._why_it_ended(reason, text, asked.room):
            self._stage.say(self.name, why)
        if text or reason == "stop":
            content = _closed(opening + text).replace("\0", "")  # no text may hold a NUL
            turn = Turn(question=asked.question, answer=content, whole=reason == "stop")
            self.turns = (*asked.before, turn)

    def _stopping(self) -> AbstractContextManager[Stop]:
        return stoppable() if self._interactive else nullcontext(Stop())

    def _why_it_ended(self, reason: str, text: str, room: int) -> str | None:
        """Why an answer ended, unless it ended by itself."""
        if reason == "interrupted" and not text:
            return "(stopped before anything came: the question is left out; /retry asks it again)"
        if reason == "interrupted":
            return "(stopped)"
        if reason == "length" and room <= self._max_tokens:
            positions = self._model.positions
            return f"(cut off: the context of {positions} tokens is full; /clear makes room)"
        if reason == "length":
            return f"(cut off after {self._max_tokens} tokens: see --max-tokens)"
        return None if text.strip() else "(the model said nothing)"


def _messages(system: str | None, turns: tuple[Turn, ...]) -> Messages:
    messages = system_message(system)
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    return messages


class _View:
    """One answer on a page: thoughts dimmed or hidden, and a line end behind it."""

    def __init__(
        self, page: Page, *, thinking: bool, hidden: bool, told: Callable[[], None]
    ) -> None:
        self._page = page
        self._thoughts = Thoughts(thinking=thinking)
        self._hidden = hidden
        self._tell = told
        self._told = False  # that it thinks
        self._last = ""  # the last character on the page

    def show(self, text: str) -> None:
        for thought, part in self._thoughts.add(text):
            self._show(thought, part)

    def end(self) -> None:
        for thought, part in self._thoughts.end():
            self._show(thought, part)
        if self._last not in ("", "\n"):
            self._page.write("\n")

    def _show(self, thought: bool, text: str) -> None:
        if thought and self._hidden:
            if not self._told and text.replace(OPEN, "").replace(CLOSE, "").strip():
                self._told = True
                self._tell()
            return
        if self._hidden and not self._last:
            text = text.lstrip("\n")  # what stands between thoughts and answer
        if text:
            self._page.write(text, dim=thought)
            self._last = text[-1]


def _closed(answer: str) -> str:
    """The answer with its think block closed: a template takes out whole blocks alone."""
    open_still = answer.lstrip().startswith(OPEN) and CLOSE not in answer
    return f"{answer}\n{CLOSE}\n\n" if open_still else answer
