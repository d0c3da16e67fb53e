"""`qwen-local doctor`."""

from __future__ import annotations

import click

from qwen_local.cli.options import json_option, print_json


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is here, which engine auto takes, and what is missing."""
    from qwen_local.backends.doctor import diagnose
    from qwen_local.backends.select import probe

    findings = diagnose(probe())
    if as_json:
        print_json(findings.to_json())
    else:
        click.echo(findings.describe())
