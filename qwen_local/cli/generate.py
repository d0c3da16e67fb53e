"""`qwen-local generate`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qwen_local.cli.options import (
    backend_option,
    device_option,
    json_option,
    print_json,
)
from qwen_local.errors import InputError


@click.command()
@click.option("--model", required=True, help="Hub id, local folder, or qwen-local/tiny.")
@click.option("--revision", help="Commit, branch or tag of a hub model.")
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="A run, or a folder that PEFT or mlx-lm wrote.",
)
@click.option("--prompt", required=True, help="The question; - reads it from stdin.")
@click.option("--system", help="System message before it.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--thinking/--no-thinking",
    default=None,
    help="For models that can do both; by default as the adapter was trained.",
)
@backend_option
@device_option
@json_option
def generate(
    model: str,
    revision: str | None,
    adapter: Path | None,
    prompt: str,
    system: str | None,
    max_tokens: int,
    thinking: bool | None,
    backend: str,
    device: str,
    as_json: bool,
) -> None:
    """Answer one prompt, greedily."""
    from qwen_local.inference.answer import answer

    said = answer(
        model,
        revision=revision,
        adapter=adapter,
        prompt=_read_stdin() if prompt == "-" else prompt,
        system=system,
        max_tokens=max_tokens,
        backend=backend,
        device=device,
        thinking=thinking,
    )
    if as_json:
        print_json(said.to_json())
    else:
        click.echo(said.text)
        if said.finish_reason == "length":
            click.echo(f"(cut off after {max_tokens} tokens: see --max-tokens)", err=True)


def _read_stdin() -> str:
    """All of stdin as UTF-8, but for the line end that `echo` adds."""
    if sys.stdin is None:
        raise InputError.at("--prompt -", "stdin is closed")
    content = sys.stdin.buffer.read()
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at {error.start}"
        raise InputError.at("--prompt -", f"expected UTF-8; found {found}") from None
