"""Translate the arguments that an error of the library names into the flags of a command.

The library names its arguments and writes them in backticks within a sentence; it has no command
line. `with_flags` is applied where the command line prints an error, and nowhere else.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

ARGUMENT = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`\n]*))?`")
"""An argument within a sentence: `device=cpu` or `adapter`, with its backticks."""
PLACE = re.compile(r"((?:\A|\n\n))([a-z][a-z0-9_]*)(?=:[ \n]| [^\n]*?: )")
"""The first word of a fault, if a colon ends it or the words after it."""


class JoinedOption(click.Option):
    """An option with an optional value, which must follow `=`."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return the columns of `--help`."""
        return f"{self.opts[0]}[={self.metavar}]", self.help or ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """An option of a command."""

    name: str
    """Long form, such as `--max-tokens`."""
    off: str | None = None
    """Long form of False, such as `--no-thinking`."""
    boolean: bool = False
    """True if the option takes no value."""
    joined: bool = False
    """True if the value must follow `=`."""

    def with_value(self, value: str) -> str:
        """Format the option as it is typed.

        >>> Flag(name="--device").with_value("cpu"), Flag(name="--data").with_value("my rows")
        ('--device cpu', "--data 'my rows'")
        >>> Flag(name="--thinking", off="--no-thinking", boolean=True).with_value("false")
        '--no-thinking'
        """
        if self.boolean:
            return self.off if self.off and value.lower() == "false" else self.name
        return f"{self.name}{'=' if self.joined else ' '}{shlex.quote(value)}"


Flags = Mapping[str, Flag]
"""Flag by the name of its argument, and by its own name: `output` and `fix` for `--fix`."""


def flags_of(command: click.Command) -> Flags:
    """Return the options of a command."""
    flags: dict[str, Flag] = {}
    for option in command.params:
        if not isinstance(option, click.Option):
            continue
        name = next(text for text in option.opts if text.startswith("--"))
        flag = Flag(
            name=name,
            off=next(iter(option.secondary_opts), None),
            boolean=option.is_flag,
            joined=isinstance(option, JoinedOption),
        )
        flags |= dict.fromkeys((option.name or "", name[2:].replace("-", "_")), flag)
    return flags


def command_of(program: click.Command, arguments: Sequence[str]) -> click.Command:
    """Return the command that the arguments call; the innermost group if they call none.

    Args:
        program: the whole command line; its groups have no options with values.
        arguments: of the program, without its name.
    """
    command = program
    for argument in arguments:
        if not isinstance(command, click.Group):
            break
        command = command.commands.get(argument, command)
    return command


def with_flags(message: str, flags: Flags) -> str:
    r"""Write the arguments in an error message as flags.

    An argument that is no option keeps its name, without the backticks. Job keys such as
    `model.quantization`, commands and file paths stay as they are.

    Args:
        message: one or several faults, separated by blank lines.
        flags: of the command that failed.

    >>> flags = {"max_tokens": Flag(name="--max-tokens"), "device": Flag(name="--device")}
    >>> with_flags("max_tokens: expected at least 1", flags)
    '--max-tokens: expected at least 1'
    >>> with_flags("no GPU\n\nhint: set `device=cpu` or `dtype=float32`", flags)
    'no GPU\n\nhint: set --device cpu or dtype=float32'
    """

    def place(match: re.Match[str]) -> str:
        flag = flags.get(match[2])
        return match[0] if flag is None else f"{match[1]}{flag.name}"

    return text_with_flags(PLACE.sub(place, message), flags)


def text_with_flags(text: str, flags: Flags) -> str:
    """Write the arguments in backticks as flags, in a text that is no error message.

    >>> text_with_flags("output: none, as `output` is missing", {"output": Flag(name="--output")})
    'output: none, as --output is missing'
    """

    def argument(match: re.Match[str]) -> str:
        flag, value = flags.get(match[1]), match[2]
        if flag is None:
            return match[0].strip("`")
        return flag.name if value is None else flag.with_value(value)

    return ARGUMENT.sub(argument, text)
