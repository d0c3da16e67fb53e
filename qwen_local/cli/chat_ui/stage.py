"""Where the answers to a question go: one voice alone, or two that are compared."""

from __future__ import annotations

import json
from typing import Protocol

from qwen_local.cli.chat_ui.terminal import Screen, say


class Page(Protocol):
    """What an answer is written on, piece by piece: `qwen_local.cli.chat_ui.terminal.Screen`."""

    def write(self, text: str, *, dim: bool = False) -> None:
        """Show a piece of an answer."""
        ...


class Stage(Protocol):
    """Takes the answers to a question, one voice after the other."""

    def begin(self, voice: str) -> Page:
        """The answer of this voice comes."""
        ...

    def thinks(self, voice: str) -> None:
        """It has thoughts, which are hidden."""
        ...

    def say(self, voice: str, message: str) -> None:
        """A word about this voice's answer."""
        ...

    def end(self, question: str) -> None:
        """All answers to the question are there."""
        ...


class Alone:
    """One voice, which has the screen to itself and needs no name."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def begin(self, voice: str) -> Page:
        """See `Stage.begin`."""
        return self._screen

    def thinks(self, voice: str) -> None:
        """See `Stage.thinks`."""
        self.say(voice, "(thinking)")

    def say(self, voice: str, message: str) -> None:
        """See `Stage.say`."""
        say(message)

    def end(self, question: str) -> None:
        """See `Stage.end`."""


class InTurn(Alone):
    """Each voice under its name."""

    def begin(self, voice: str) -> Page:
        """See `Stage.begin`."""
        self._screen.write(f"--- {voice} ---\n", dim=True)
        return self._screen

    def say(self, voice: str, message: str) -> None:
        """See `Stage.say`."""
        say(f"{voice}: {message}")


class JsonLines:
    """A JSON object for each question: the question under `prompt`, each answer under its voice."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._answers: dict[str, _Text] = {}

    def begin(self, voice: str) -> Page:
        """See `Stage.begin`."""
        self._answers[voice] = _Text()
        return self._answers[voice]

    def thinks(self, voice: str) -> None:
        """See `Stage.thinks`. Nobody waits before a pipe."""

    def say(self, voice: str, message: str) -> None:
        """See `Stage.say`."""
        say(f"{voice}: {message}")

    def end(self, question: str) -> None:
        """See `Stage.end`."""
        said = {voice: text.value.removesuffix("\n") for voice, text in self._answers.items()}
        self._answers = {}
        row = json.dumps({"prompt": question, **said}, ensure_ascii=False)
        self._screen.write(f"{row}\n")


class _Text:
    """A page that is kept."""

    def __init__(self) -> None:
        self.value = ""

    def write(self, text: str, *, dim: bool = False) -> None:
        """Keep it."""
        self.value += text
