"""`qwen-local generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from qwen_local.cli.options import (
    answer_options,
    backend_option,
    device_option,
    json_option,
    print_json,
    quiet_option,
    take_request,
    take_sampling,
)
from qwen_local.errors import InputError


@click.command()
@click.option("--prompt", help="Prompt to answer; - reads it from stdin.")
@click.option(
    "--batch",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of prompts, one in each row; see docs/chat.md.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the answers of --batch; rows that are answered already are skipped.",
)
@answer_options
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Maximum answer length.",
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

    The answer to a prompt is sampled with the settings in the model's generation_config.json,
    which the options override; rows of a file are answered greedily.
    """
    match prompt, batch, output:
        case str(), None, None:
            _answer_one(prompt, quiet=quiet, as_json=as_json, **options)
        case None, Path(), Path():
            _answer_batch(batch, output, quiet=quiet, as_json=as_json, **options)
        case None, Path(), None:
            problem = "expected --output for the answers; found none"
            raise InputError.at("--batch", problem, "add --output, for example answers.jsonl")
        case str(), None, Path():
            problem = "has no effect without --batch; the answer to --prompt goes to stdout"
            raise InputError.at("--output", problem, "leave it out")
        case _:
            given = "neither" if prompt is None else "both"
            raise InputError.at("--prompt", f"expected either --prompt or --batch; found {given}")


def _answer_one(
    prompt: str, *, quiet: bool, as_json: bool, max_tokens: int, **options: Any
) -> None:
    from qwen_local.cli.chat_ui.terminal import Screen
    from qwen_local.console.log import talk
    from qwen_local.inference.generator import answer

    screen = Screen.open()
    with talk(quiet=quiet):
        found = answer(
            take_request(options),
            options=take_sampling(options),
            prompt=_read_stdin() if prompt == "-" else prompt,
            max_tokens=max_tokens,
            show=(lambda text: None) if as_json else screen.write,
            **options,
        )
    if as_json:
        print_json(found.to_json())
        return
    screen.write("\n")
    if found.finish_reason == "length" and not quiet:
        click.echo(f"(cut off after {max_tokens} tokens; see --max-tokens)", err=True)


def _answer_batch(batch: Path, output: Path, *, quiet: bool, as_json: bool, **options: Any) -> None:
    from qwen_local.console.log import talk
    from qwen_local.inference.batch import answer_prompts, check_greedy

    check_greedy(take_sampling(options))
    with talk(quiet=quiet):
        summary = answer_prompts(take_request(options), batch, output, quiet=quiet, **options)
    if as_json:
        print_json(summary.to_json())
    else:
        click.echo(summary.output)


def _read_stdin() -> str:
    """Read all of stdin as UTF-8, without the line end that `echo` adds."""
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
