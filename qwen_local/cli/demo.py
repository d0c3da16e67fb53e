"""`qwen-local demo`."""

from __future__ import annotations

from pathlib import Path

import click

from qwen_local.cli.options import json_option, print_json


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for the runs; default runs/demo-<date>-<n>.",
)
@json_option
def demo(output: Path | None, as_json: bool) -> None:
    """Train, merge and test the embedded model on every engine here.

    Compares the loss curves of the engines, and answers held-out questions before and after
    training.
    """
    from qwen_local.demo import run_demo

    result = run_demo(output)
    if as_json:
        print_json(result.to_json())
    else:
        click.echo(result.describe())
