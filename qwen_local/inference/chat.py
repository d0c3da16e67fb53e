"""A conversation with a model: the loop, its commands, what is kept."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from qwen_local.backends.base import Sampling, Session
from qwen_local.errors import InputError
from qwen_local.inference.answer import Answer, Messages, Prompt, system_message
from qwen_local.inference.sampling import SEEDS
from qwen_local.inference.terminal import Read, Screen, Stop, say, stoppable
from qwen_local.inference.text import CLOSE, OPEN, Thoughts
from qwen_local.signals import Stopped

QUOTES = '"""'

HELP = '''\
/help          this
/system TEXT   set the system message; alone, show it; /system "" takes it away
/clear         forget the conversation, but for the system message
/retry         answer the last question again
/save FILE     write the conversation as a row of training data; /save! replaces a file
/exit          leave, as Ctrl+D does; /quit and /bye, too
Ctrl+C         stop the answer; at the prompt, clear the line
"""            at the start of a line: a message of several lines, up to the next """'''

LEAVE = ("/exit", "/quit", "/bye")
COMMANDS = ("/help", "/system", "/clear", "/retry", "/save", "/save!", "/exit")


class Model(Protocol):
    """What a conversation is held with: `qwen_local.inference.answer.Answerer`."""

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


class Chat:
    """One conversation in a terminal, or through pipes."""

    def __init__(
        self,
        model: Model,
        *,
        read: Read,
        screen: Screen,
        interactive: bool,
        sampling: Sampling,
        max_tokens: int,
        system: str | None = None,
        hide_thinking: bool = False,
    ) -> None:
        """Begin with nothing said.

        Args:
            model: who answers.
            read: gives the next line.
            screen: takes the answers.
            interactive: whether a person is there: to be prompted, and to stop answers by Ctrl+C.
            sampling: how answers are drawn; the seed goes up by one with every answer.
            max_tokens: the longest answer; less where the context ends.
            system: the system message.
            hide_thinking: whether thoughts are left out of what is shown.
        """
        self._model = model
        self._read = read
        self._screen = screen
        self._interactive = interactive
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._system = system
        self._hide_thinking = hide_thinking
        self._session = model.session()
        self._turns: list[Turn] = []
        self._asked: tuple[list[Turn], str] | None = None  # the last question and what came before
        self._answers = 0
        self._refused = 0
        self._beyond = False  # that it was told: longer than the adapter was trained on

    def run(self) -> int:
        """Read and answer until the end of the input.

        Returns:
            The exit code: 1 where lines of a pipe went without an answer.

        Raises:
            InputError: a line of a pipe cannot be read.
        """
        interrupts = 0
        while True:
            try:
                text, quoted = self._message()
            except EOFError:
                return self._status()
            except KeyboardInterrupt as interrupt:
                if not self._interactive or isinstance(interrupt, Stopped):
                    raise
                interrupts += 1
                if interrupts == 2:
                    say("(Ctrl+D leaves)")
                continue
            except InputError as error:
                if not self._interactive:
                    raise
                say(str(error))
                continue
            interrupts = 0
            if quoted or not text.startswith("/") or "\n" in text:
                if text.strip():
                    self._answer(self._turns, text)
            elif text.strip().lower() in LEAVE:
                return self._status()
            else:
                self._command(text.strip())

    def _status(self) -> int:
        return 0 if self._interactive else min(self._refused, 1)

    def _message(self) -> tuple[str, bool]:
        """(what was written, whether between triple quotes): a line, or all between the quotes."""
        text = self._read(">>> ")
        if not text.startswith(QUOTES):
            return text, False
        text = text.removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            try:
                text = f"{text}\n{self._read('... ')}"
            except EOFError:
                if self._interactive:
                    raise
                problem = f"the message that begins with {QUOTES} has no end"
                raise InputError.at("stdin", problem, f"end it with {QUOTES}") from None
        return text.rstrip().removesuffix(QUOTES).removeprefix("\n").removesuffix("\n"), True

    # --- commands ---

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name.lower():
            case "/help":
                say(HELP)
            case "/system":
                self._set_system(rest)
            case "/clear":
                self._turns, self._asked = [], None
                self._session = self._model.session()  # gives back its memory, too
                say("(the conversation is forgotten)")
            case "/retry" if self._asked is None:
                say("(nothing was asked yet)")
            case "/retry" if self._asked is not None:
                if self._sampling.temperature == 0 and self._turns and self._turns[-1].whole:
                    say("(the likeliest tokens stay the same: --temperature lets answers differ)")
                self._answer(*self._asked)
            case "/save" | "/save!":
                self._save(rest, replacing=name.endswith("!"))
            case _:
                self._refused += 1
                close = difflib.get_close_matches(name, COMMANDS, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                say(
                    f"{name}: no such command; {hint}/help lists them, and between {QUOTES} it is "
                    "a message"
                )

    def _set_system(self, text: str) -> None:
        if text in ('""', QUOTES * 2):
            self._system = None
            say("(there is no system message now)")
        elif text:
            self._system = text
            say("(the system message is set, for the whole conversation; /clear begins anew)")
        else:
            say("(there is no system message)" if self._system is None else self._system)

    def _save(self, name: str, *, replacing: bool) -> None:
        if not name or not self._turns:
            say("/save FILE: name a file" if self._turns else "(nothing was said yet)")
            return
        row = json.dumps({"messages": self._messages(self._turns)}, ensure_ascii=False)
        try:
            path = Path(name).expanduser()
            with path.open("w" if replacing else "x", encoding="utf-8") as file:
                file.write(f"{row}\n")
        except FileExistsError:
            say(f"{name}: is there already; /save! {name} replaces it")
            return
        except (OSError, RuntimeError, ValueError) as error:  # no such home, a NUL in the name
            say(f"{name}: {getattr(error, 'strerror', None) or error}")
            return
        broken = sum(not turn.whole for turn in self._turns)
        note = f"; {broken} of its answers not whole: mend before training on it" if broken else ""
        said = "a question and its answer"
        if len(self._turns) > 1:
            said = f"{len(self._turns)} questions and answers"
        say(f"({name}: {said}{note})")

    # --- answers ---

    def _messages(self, turns: list[Turn]) -> Messages:
        messages = system_message(self._system)
        for turn in turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def _answer(self, before: list[Turn], question: str) -> None:
        """Answer, and keep question and answer where something was said."""
        self._asked = before, question
        asked = {"role": "user", "content": question}
        try:
            prompt = self._model.prompt([*self._messages(before), asked])
        except InputError as error:
            self._refused += 1
            say(str(error))
            return
        room = self._model.positions - len(prompt.ids)
        if room < 1:
            self._refused += 1
            alone = self._model.prompt([*system_message(self._system), asked]) if before else prompt
            fits = len(alone.ids) < self._model.positions
            say(
                f"the conversation would have {len(prompt.ids)} tokens, and the model has "
                f"{self._model.positions} positions: nothing was sent\n\nhint: "
                + ("/clear forgets what was said before" if fits else "shorten the question")
            )
            return
        trained = self._model.trained_length
        if trained is not None and len(prompt.ids) > trained and not self._beyond:
            self._beyond = True
            say(
                f"(the conversation has {len(prompt.ids)} tokens, and the adapter was trained on "
                f"at most {trained} together: it may lose its way; /clear begins again)"
            )
        view = _View(self._screen, thinking=bool(prompt.opening), hidden=self._hide_thinking)
        view.show(prompt.opening)
        said: list[str] = []
        reason = "interrupted"
        sampling = replace(self._sampling, seed=(self._sampling.seed + self._answers) % SEEDS)
        self._answers += 1
        try:
            with self._stopping() as stop:

                def show(text: str) -> bool:
                    stop.coming = True
                    said.append(text)
                    view.show(text)
                    return not stop.asked

                answer = self._model.stream(
                    self._session,
                    prompt,
                    max_tokens=min(self._max_tokens, room),
                    sampling=sampling,
                    show=show,
                )
                reason = answer.finish_reason
        except KeyboardInterrupt as interrupt:
            if not self._interactive or isinstance(interrupt, Stopped):
                raise
        view.end()
        text = "".join(said)
        self._tell_end(reason, text, room)
        if text or reason == "stop":
            content = _closed(prompt.opening + text).replace("\0", "")  # no text may hold a NUL
            turn = Turn(question=question, answer=content, whole=reason == "stop")
            self._turns = [*before, turn]

    def _stopping(self) -> AbstractContextManager[Stop]:
        return stoppable() if self._interactive else nullcontext(Stop())

    def _tell_end(self, reason: str, text: str, room: int) -> None:
        """Say why an answer ended, unless it ended by itself."""
        if reason == "interrupted" and not text:
            say("(stopped before anything came: the question is left out; /retry asks it again)")
        elif reason == "interrupted":
            say("(stopped)")
        elif reason == "length" and room <= self._max_tokens:
            positions = self._model.positions
            say(f"(cut off: the context of {positions} tokens is full; /clear makes room)")
        elif reason == "length":
            say(f"(cut off after {self._max_tokens} tokens: see --max-tokens)")
        elif not text.strip():
            say("(the model said nothing)")


class _View:
    """One answer on the screen: thoughts dimmed or hidden, and a line end behind it."""

    def __init__(self, screen: Screen, *, thinking: bool, hidden: bool) -> None:
        self._screen = screen
        self._thoughts = Thoughts(thinking=thinking)
        self._hidden = hidden
        self._told = False  # that it thinks
        self._last = ""  # the last character on the screen

    def show(self, text: str) -> None:
        for thought, part in self._thoughts.add(text):
            self._show(thought, part)

    def end(self) -> None:
        for thought, part in self._thoughts.end():
            self._show(thought, part)
        if self._last not in ("", "\n"):
            self._screen.write("\n")

    def _show(self, thought: bool, text: str) -> None:
        if thought and self._hidden:
            if not self._told and text.replace(OPEN, "").replace(CLOSE, "").strip():
                self._told = True
                say("(thinking)")
            return
        if self._hidden and not self._last:
            text = text.lstrip("\n")  # what stands between thoughts and answer
        if text:
            self._screen.write(text, dim=thought)
            self._last = text[-1]


def _closed(answer: str) -> str:
    """The answer with its think block closed: a template takes out whole blocks alone."""
    open_still = answer.lstrip().startswith(OPEN) and CLOSE not in answer
    return f"{answer}\n{CLOSE}\n\n" if open_still else answer
