"""`qwen-local chat`."""

from __future__ import annotations

from typing import Any

import click

from qwen_local.cli.options import answer_options, backend_option, device_option, take_wishes
from qwen_local.errors import InputError


@click.command()
@answer_options
@click.option(
    "--compare", is_flag=True, help="Ask the bare model, too, and show it beside the adapter."
)
@click.option("--hide-thinking", is_flag=True, help="Show answers without the thoughts.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Longest answer; less where the context ends.",
)
@backend_option
@device_option
def chat(
    max_tokens: int, hide_thinking: bool, compare: bool, system: str | None, **options: Any
) -> int:
    """Talk with a model, turn by turn.

    In a terminal, /help lists what there is besides. From a pipe every line is a turn, and stdout
    has the answers alone; with --compare, a JSON object a turn: prompt, base and adapter.
    """
    from qwen_local.cli.chat_ui.chat import Chat
    from qwen_local.cli.chat_ui.terminal import Screen, is_interactive, print_message, reader
    from qwen_local.console.log import talk
    from qwen_local.inference.generator import Answerer
    from qwen_local.inference.sampling_options import describe

    if compare and options["adapter"] is None:
        problem = "expected an --adapter to compare with its model; found none"
        raise InputError.at("--compare", problem, "add --adapter, for example a run")
    read = reader()
    with talk(quiet=False):
        model = Answerer(wishes=take_wishes(options), **options)
        print_message(model.about)
        print_message(f"answers: {describe(model.sampling)}")
        if is_interactive():
            print_message("type /help for commands; press Ctrl+D to exit")
        return Chat(
            model,
            read=read,
            screen=Screen.open(),
            interactive=is_interactive(),
            sampling=model.sampling,
            max_tokens=max_tokens,
            system=system,
            hide_thinking=hide_thinking,
            base=model.bare() if compare else None,
        ).run()
