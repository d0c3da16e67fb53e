"""A conversation with a model: the loop, its commands, what is kept."""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from pathlib import Path

from qwen_local.backends.base import Sampling
from qwen_local.cli.chat_ui.conversation import Conversation, Model, NoRoomError
from qwen_local.cli.chat_ui.stage import Alone, JsonLines, Stage
from qwen_local.cli.chat_ui.terminal import Read, Screen, say
from qwen_local.console.signals import Stopped
from qwen_local.errors import InputError
from qwen_local.inference.sampling_options import SEEDS

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


class Chat:
    """A talk in a terminal, or through pipes, with one model or with two that are compared."""

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
        base: Model | None = None,
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
            base: the bare model of an adapter, which answers every question first.
        """
        self._read = read
        self._interactive = interactive
        self._sampling = sampling
        self._system = system
        stage = Alone(screen) if base is None else _comparing(screen, interactive=interactive)
        self._stage = stage
        self._voices = [
            Conversation(
                voice,
                name=name,
                stage=stage,
                interactive=interactive,
                max_tokens=max_tokens,
                hide_thinking=hide_thinking,
            )
            for name, voice in (("base", base), ("adapter", model))
            if voice is not None
        ]
        self._own = self._voices[-1]  # what is saved
        self._question: str | None = None  # the last
        self._answers = 0
        self._refused = 0

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
                    self._ask(text)
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
                for voice in self._voices:
                    voice.clear()
                self._question = None
                say("(the conversation is forgotten)")
            case "/retry":
                self._retry()
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

    def _retry(self) -> None:
        if self._question is None:
            say("(nothing was asked yet)")
            return
        whole = all(voice.turns and voice.turns[-1].whole for voice in self._voices)
        if self._sampling.temperature == 0 and whole:
            say("(the likeliest tokens stay the same: --temperature lets answers differ)")
        self._ask(self._question, again=True)

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
        turns = self._own.turns
        if not name or not turns:
            say("/save FILE: name a file" if turns else "(nothing was said yet)")
            return
        row = json.dumps({"messages": self._own.messages(self._system)}, ensure_ascii=False)
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
        broken = sum(not turn.whole for turn in turns)
        note = f"; {broken} of its answers not whole: mend before training on it" if broken else ""
        said = "a question and its answer"
        if len(turns) > 1:
            said = f"{len(turns)} questions and answers"
        if len(self._voices) > 1:
            said += f" of the {self._own.name}"
        say(f"({name}: {said}{note})")

    # --- answers ---

    def _ask(self, question: str, *, again: bool = False) -> None:
        """Have a question answered by every voice, or by none where one cannot."""
        self._question = question
        asked = []
        for voice in self._voices:
            try:
                asked.append(voice.ask(question, system=self._system, again=again))
            except (InputError, NoRoomError) as error:
                self._refused += 1
                self._stage.say(voice.name, str(error))
                return
        sampling = replace(self._sampling, seed=(self._sampling.seed + self._answers) % SEEDS)
        self._answers += 1
        for voice, its in zip(self._voices, asked, strict=True):
            voice.answer(its, sampling=sampling)
        self._stage.end(question)


def _comparing(screen: Screen, *, interactive: bool) -> Stage:
    """Where two voices go: side by side before a person, rows of JSON for a program."""
    if not (interactive and screen.terminal):
        return JsonLines(screen)
    from qwen_local.cli.chat_ui.side_by_side import Columns

    return Columns(screen)
