"""`qwen-local generate`."""

from __future__ import annotations

import sys
from typing import Any

import click

from qwen_local.cli.options import (
    answer_options,
    backend_option,
    device_option,
    json_option,
    print_json,
    take_wishes,
)
from qwen_local.errors import InputError


@click.command()
@click.option("--prompt", required=True, help="The question; - reads it from stdin.")
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
@json_option
def generate(prompt: str, max_tokens: int, as_json: bool, **options: Any) -> None:
    """Answer one prompt.

    The answer is drawn as the model's generation_config.json says, unless an option says otherwise.
    """
    from qwen_local.inference.answer import answer
    from qwen_local.inference.terminal import Screen
    from qwen_local.talk import talk

    screen = Screen.open()
    with talk(quiet=False):
        said = answer(
            prompt=_read_stdin() if prompt == "-" else prompt,
            max_tokens=max_tokens,
            wishes=take_wishes(options),
            show=(lambda text: None) if as_json else screen.write,
            **options,
        )
    if as_json:
        print_json(said.to_json())
        return
    screen.write("\n")
    if said.finish_reason == "length":
        click.echo(f"(cut off after {max_tokens} tokens: see --max-tokens)", err=True)


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
