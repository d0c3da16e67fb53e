"""Displays for the answers to a question, from one model or from two that are compared."""

from __future__ import annotations

import json
from typing import Protocol

from qwen_local.cli.chat_ui.terminal import Screen, print_message


class TextOutput(Protocol):
    """Receives an answer piece by piece, such as `qwen_local.cli.chat_ui.terminal.Screen`."""

    def write(self, text: str, *, dim: bool = False) -> None:
        """Print a piece of an answer."""
        ...


class Display(Protocol):
    """Shows the answers to a question, one model after the other.

    The argument `name` is the name of the model.
    """

    def start(self, name: str) -> TextOutput:
        """Start the answer of this model."""
        ...

    def show_thinking(self, name: str) -> None:
        """Show that the model produces hidden reasoning."""
        ...

    def show_message(self, name: str, message: str) -> None:
        """Show a message about this model's answer."""
        ...

    def finish(self, question: str) -> None:
        """Finish after all answers to the question."""
        ...


class SingleDisplay:
    """Display for one model, without names."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def start(self, name: str) -> TextOutput:
        """See `Display.start`."""
        return self._screen

    def show_thinking(self, name: str) -> None:
        """See `Display.show_thinking`."""
        self.show_message(name, "(thinking)")

    def show_message(self, name: str, message: str) -> None:
        """See `Display.show_message`."""
        print_message(message)

    def finish(self, question: str) -> None:
        """See `Display.finish`."""


class SequentialDisplay(SingleDisplay):
    """Display for several models, one below the other, each under its name."""

    def start(self, name: str) -> TextOutput:
        """See `Display.start`."""
        self._screen.write(f"--- {name} ---\n", dim=True)
        return self._screen

    def show_message(self, name: str, message: str) -> None:
        """See `Display.show_message`."""
        print_message(f"{name}: {message}")


class JsonDisplay:
    """Prints a JSON object per question, with the keys `prompt` and the names of the models."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._answers: dict[str, _Buffer] = {}

    def start(self, name: str) -> TextOutput:
        """See `Display.start`."""
        self._answers[name] = _Buffer()
        return self._answers[name]

    def show_thinking(self, name: str) -> None:
        """See `Display.show_thinking`. Prints nothing in a pipe."""

    def show_message(self, name: str, message: str) -> None:
        """See `Display.show_message`."""
        print_message(f"{name}: {message}")

    def finish(self, question: str) -> None:
        """See `Display.finish`."""
        answers = {name: text.value.removesuffix("\n") for name, text in self._answers.items()}
        self._answers = {}
        row = json.dumps({"prompt": question, **answers}, ensure_ascii=False)
        self._screen.write(f"{row}\n")


class _Buffer:
    """Output that collects the text."""

    def __init__(self) -> None:
        self.value = ""

    def write(self, text: str, *, dim: bool = False) -> None:
        """Append the text."""
        self.value += text
