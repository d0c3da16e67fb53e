"""`qwen-local chat`."""

from __future__ import annotations

from typing import Any

import click

from qwen_local.cli.options import (
    answer_options,
    backend_option,
    device_option,
    take_request,
    take_sampling,
)
from qwen_local.errors import InputError


@click.command()
@answer_options
@click.option("--compare", is_flag=True, help="Also ask the base model, and show both answers.")
@click.option("--hide-thinking", is_flag=True, help="Hide the reasoning.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Maximum answer length; the context can limit it further.",
)
@backend_option
@device_option
def chat(
    max_tokens: int, hide_thinking: bool, compare: bool, system: str | None, **options: Any
) -> int:
    """Chat with a model.

    In a terminal, /help lists the commands. From a pipe, every line is a turn, and stdout has only
    the answers; with --compare, one JSON object per turn: prompt, base and adapter.
    """
    from qwen_local.cli.chat_ui.chat import Chat, ChatSettings
    from qwen_local.cli.chat_ui.terminal import Screen, is_interactive, print_message, reader
    from qwen_local.console.log import talk
    from qwen_local.inference.generator import Generator
    from qwen_local.inference.sampling_options import describe

    if compare and options["adapter"] is None:
        problem = "expected --adapter; found none"
        raise InputError.at("--compare", problem, "add --adapter, for example a run")
    read = reader()
    with talk(quiet=False):
        model = Generator(
            take_request(options), options=take_sampling(options), thinking=options["thinking"]
        )
        print_message(model.about)
        print_message(f"answers: {describe(model.sampling)}")
        if is_interactive():
            print_message("type /help for commands; press Ctrl+D to exit")
        return Chat(
            model,
            ChatSettings(
                sampling=model.sampling,
                max_tokens=max_tokens,
                system=system,
                hide_thinking=hide_thinking,
            ),
            base=model.bare() if compare else None,
            read=read,
            screen=Screen.open(),
            interactive=is_interactive(),
        ).run()
