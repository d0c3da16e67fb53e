"""The chat loop and its commands."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_local.backends.base import Sampling
from qwen_local.cli.chat_ui.conversation import ChatModel, Conversation, NoRoomError
from qwen_local.cli.chat_ui.display import Display, JsonDisplay, SingleDisplay
from qwen_local.cli.chat_ui.terminal import ReadLine, Screen, print_message
from qwen_local.console.signals import Stopped
from qwen_local.errors import InputError
from qwen_local.inference.sampling_options import SEEDS

QUOTES = '"""'

HELP = '''\
/help          show this help
/system TEXT   set the system message; without TEXT, show it; /system "" removes it
/clear         clear the conversation but keep the system message
/retry         answer the last question again
/save FILE     save the conversation as a training record; /save! replaces a file
/exit          exit (also Ctrl+D, /quit, /bye)
Ctrl+C         stop the answer; at the prompt, clear the line
"""            start a message of several lines, up to the next """'''

EXIT_COMMANDS = ("/exit", "/quit", "/bye")
COMMANDS = ("/help", "/system", "/clear", "/retry", "/save", "/save!", "/exit")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatSettings:
    """Settings of a chat."""

    sampling: Sampling
    """Sampling settings; the seed increases by one with every answer."""
    max_tokens: int
    """Maximum answer length; the context can limit it further."""
    system: str | None = None
    """The system message."""
    hide_thinking: bool = False
    """True to hide the reasoning."""


class Chat:
    """A chat in a terminal or through pipes, with one model or with adapter and base model."""

    def __init__(
        self,
        model: ChatModel,
        settings: ChatSettings,
        *,
        base: ChatModel | None = None,
        read: ReadLine,
        screen: Screen,
        interactive: bool,
    ) -> None:
        """Start an empty conversation.

        Args:
            model: the model that answers.
            settings: of the conversation.
            base: base model of the adapter; it answers every question first.
            read: reads the next line.
            screen: prints the answers.
            interactive: True to prompt a person, who can stop answers with Ctrl+C.
        """
        self._read = read
        self._interactive = interactive
        self._sampling = settings.sampling
        self._system = settings.system
        display = (
            SingleDisplay(screen) if base is None else _comparing(screen, interactive=interactive)
        )
        self._display = display
        self._conversations = [
            Conversation(
                conversation,
                name=name,
                display=display,
                interactive=interactive,
                max_tokens=settings.max_tokens,
                hide_thinking=settings.hide_thinking,
            )
            for name, conversation in (("base", base), ("adapter", model))
            if conversation is not None
        ]
        self._saved = self._conversations[-1]  # the conversation that /save writes
        self._question: str | None = None  # the last question
        self._answers = 0
        self._refused = 0

    def run(self) -> int:
        """Read and answer until the end of the input.

        Returns:
            Exit code: 1 if a line from a pipe was not answered.

        Raises:
            InputError: a line from a pipe is invalid.
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
                    print_message("(press Ctrl+D to exit)")
                continue
            except InputError as error:
                if not self._interactive:
                    raise
                print_message(str(error))
                continue
            interrupts = 0
            if quoted or not text.startswith("/") or "\n" in text:
                if text.strip():
                    self._ask(text)
            elif text.strip().lower() in EXIT_COMMANDS:
                return self._status()
            else:
                self._command(text.strip())

    def _status(self) -> int:
        return 0 if self._interactive else min(self._refused, 1)

    def _message(self) -> tuple[str, bool]:
        """Read a line or a triple-quoted message; the flag is True for a quoted message."""
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
                problem = f"the message that starts with {QUOTES} has no end"
                raise InputError.at("stdin", problem, f"end it with {QUOTES}") from None
        return text.rstrip().removesuffix(QUOTES).removeprefix("\n").removesuffix("\n"), True

    # --- commands ---

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name.lower():
            case "/help":
                print_message(HELP)
            case "/system":
                self._set_system(rest)
            case "/clear":
                for conversation in self._conversations:
                    conversation.clear()
                self._question = None
                print_message("(conversation cleared)")
            case "/retry":
                self._retry()
            case "/save" | "/save!":
                self._save(rest, replacing=name.endswith("!"))
            case _:
                self._refused += 1
                close = difflib.get_close_matches(name, COMMANDS, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                print_message(
                    f"{name}: unknown command; {hint}type /help for a list, or enclose a message "
                    f"in {QUOTES}"
                )

    def _retry(self) -> None:
        if self._question is None:
            print_message("(no question yet)")
            return
        complete = all(
            conversation.turns and conversation.turns[-1].complete
            for conversation in self._conversations
        )
        if self._sampling.temperature == 0 and complete:
            print_message("(greedy answers do not change; use --temperature to vary them)")
        self._ask(self._question, again=True)

    def _set_system(self, text: str) -> None:
        if text in ('""', QUOTES * 2):
            self._system = None
            print_message("(system message removed)")
        elif text:
            self._system = text
            print_message("(system message set for the whole conversation; /clear starts over)")
        else:
            print_message("(no system message)" if self._system is None else self._system)

    def _save(self, name: str, *, replacing: bool) -> None:
        turns = self._saved.turns
        if not name or not turns:
            print_message("/save FILE: expected a file name" if turns else "(no answer yet)")
            return
        row = json.dumps({"messages": self._saved.messages(self._system)}, ensure_ascii=False)
        try:
            path = Path(name).expanduser()
            with path.open("w" if replacing else "x", encoding="utf-8") as file:
                file.write(f"{row}\n")
        except FileExistsError:
            print_message(f"{name}: file exists; /save! {name} replaces it")
            return
        except (OSError, RuntimeError, ValueError) as error:  # unknown home folder, NUL in the name
            print_message(f"{name}: {getattr(error, 'strerror', None) or error}")
            return
        incomplete = sum(not turn.complete for turn in turns)
        note = (
            f"; incomplete answers: {incomplete}, edit them before training" if incomplete else ""
        )
        summary = "1 question and answer"
        if len(turns) > 1:
            summary = f"{len(turns)} questions and answers"
        if len(self._conversations) > 1:
            summary += f" of the {self._saved.name}"
        print_message(f"({name}: {summary}{note})")

    # --- answers ---

    def _ask(self, question: str, *, again: bool = False) -> None:
        """Ask every model a question, or none if one model cannot answer it."""
        self._question = question
        prepared = []
        for conversation in self._conversations:
            try:
                prepared.append(conversation.ask(question, system=self._system, again=again))
            except (InputError, NoRoomError) as error:
                self._refused += 1
                self._display.show_message(conversation.name, str(error))
                return
        sampling = replace(self._sampling, seed=(self._sampling.seed + self._answers) % SEEDS)
        self._answers += 1
        for conversation, asked in zip(self._conversations, prepared, strict=True):
            conversation.answer(asked, sampling=sampling)
        self._display.finish(question)


def _comparing(screen: Screen, *, interactive: bool) -> Display:
    """Return the display for two models: columns on a terminal, JSON lines in a pipe."""
    if not (interactive and screen.terminal):
        return JsonDisplay(screen)
    from qwen_local.cli.chat_ui.side_by_side import ColumnDisplay

    return ColumnDisplay(screen)
