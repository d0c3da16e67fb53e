"""`qwen-local doctor`."""

from __future__ import annotations

import click

from qwen_local.cli.options import json_option, print_json


@click.command()
@click.option("--hub", is_flag=True, help="Also check that the hub can be reached.")
@json_option
def doctor(hub: bool, as_json: bool) -> None:
    """Show what is installed, what auto chooses and what is missing."""
    from qwen_local.backends.doctor import diagnose
    from qwen_local.backends.hub import ask_hub
    from qwen_local.backends.probe import probe

    findings = diagnose(probe(thorough=True), ask_hub() if hub else None)
    if as_json:
        print_json(findings.to_json())
    else:
        click.echo(findings.describe())
