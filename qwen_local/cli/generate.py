"""`qwen-local generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_local.cli.options import (
    answer_options,
    backend_option,
    device_option,
    json_option,
    print_json,
    quiet_option,
    take_wishes,
)
from qwen_local.errors import InputError

if TYPE_CHECKING:
    from qwen_local.inference.sampling_options import Wishes


@click.command()
@click.option("--prompt", help="The question; - reads it from stdin.")
@click.option(
    "--batch",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with a question in each row: see docs/chat.md.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where --batch puts a row for each; what is there already is not answered again.",
)
@answer_options
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Longest answer.",
)
@backend_option
@device_option
@quiet_option
@json_option
def generate(
    prompt: str | None,
    batch: Path | None,
    output: Path | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer one prompt, or every row of a file.

    The answer to a prompt is drawn as the model's generation_config.json says, unless an option
    says otherwise; rows of a file are answered by the likeliest tokens.
    """
    wishes = take_wishes(options)
    match prompt, batch, output:
        case str(), None, None:
            _answer_one(prompt, wishes, quiet=quiet, as_json=as_json, **options)
        case None, Path(), Path():
            _answer_file(batch, output, wishes, quiet=quiet, as_json=as_json, **options)
        case None, Path(), None:
            problem = "expected the file that its answers go to; found none"
            raise InputError.at("--batch", problem, "add --output, for example answers.jsonl")
        case str(), None, Path():
            problem = "is for --batch; an answer to --prompt goes to stdout"
            raise InputError.at("--output", problem, "leave it out")
        case _:
            given = "neither" if prompt is None else "both"
            problem = f"expected one question or a file of them (--batch); found {given}"
            raise InputError.at("--prompt", problem)


def _answer_one(
    prompt: str, wishes: Wishes, *, quiet: bool, as_json: bool, max_tokens: int, **options: Any
) -> None:
    from qwen_local.cli.chat_ui.terminal import Screen
    from qwen_local.console.log import talk
    from qwen_local.inference.generator import answer

    screen = Screen.open()
    with talk(quiet=quiet):
        said = answer(
            prompt=_read_stdin() if prompt == "-" else prompt,
            max_tokens=max_tokens,
            wishes=wishes,
            show=(lambda text: None) if as_json else screen.write,
            **options,
        )
    if as_json:
        print_json(said.to_json())
        return
    screen.write("\n")
    if said.finish_reason == "length" and not quiet:
        click.echo(f"(cut off after {max_tokens} tokens: see --max-tokens)", err=True)


def _answer_file(
    batch: Path, output: Path, wishes: Wishes, *, quiet: bool, as_json: bool, **options: Any
) -> None:
    from qwen_local.console.log import talk
    from qwen_local.inference.batch import answer_file, check_greedy

    check_greedy(wishes)
    with talk(quiet=quiet):
        summary = answer_file(batch, output, quiet=quiet, **options)
    if as_json:
        print_json(summary.to_json())
    else:
        click.echo(summary.output)


def _read_stdin() -> str:
    """All of stdin as UTF-8, but for the line end that `echo` adds."""
    from qwen_local.datasets.faults import unusable

    if sys.stdin is None:
        raise InputError.at("--prompt -", "stdin is closed")
    content = sys.stdin.buffer.read()
    try:
        text = content.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at {error.start}"
        raise InputError.at("--prompt -", f"expected UTF-8; found {found}") from None
    if (problem := unusable(text)) is not None:
        raise InputError.at("--prompt -", problem)
    return text
