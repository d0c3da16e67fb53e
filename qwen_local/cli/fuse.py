"""`qwen-local fuse`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qwen_local.cli.options import (
    QUANTIZATIONS,
    backend_option,
    device_option,
    json_option,
    print_json,
    quiet_option,
)


@click.command()
@click.option(
    "--adapter",
    required=True,
    type=click.Path(path_type=Path),
    help="A run, or a folder that PEFT or mlx-lm wrote.",
)
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="Folder of the merged model."
)
@click.option("--model", help="The base model; default the one that the adapter names.")
@click.option("--revision", help="Commit, branch or tag of a hub model.")
@click.option(
    "--quantization",
    type=click.Choice(QUANTIZATIONS),
    help="What the base was held in while training; default as recorded.",
)
@click.option(
    "--requantize",
    type=click.Choice(QUANTIZATIONS),
    default="none",
    show_default=True,
    help="Quantise the merged model again, and say what that costs.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    show_default=True,
    help="Of the merged weights; auto = as the base.",
)
@backend_option
@device_option
@quiet_option
@json_option
def fuse(requantize: Any, dtype: Any, quiet: bool, as_json: bool, **options: Any) -> None:
    """Merge an adapter into its base model, and prove the result.

    The weights are those that the adapter was trained on: after training on a quantised base, its
    dequantised ones. Nothing is left behind where the merged model differs from the live adapter.
    """
    from qwen_local.export.fuse import fuse as run
    from qwen_local.export.opening import Given
    from qwen_local.talk import talk

    with talk(quiet=quiet):
        fused = run(Given(**options), requantize=requantize, dtype=dtype)
    if as_json:
        print_json(fused.to_json())
    else:
        click.echo(fused.output)
