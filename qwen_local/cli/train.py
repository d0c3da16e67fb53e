"""`qwen-local train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qwen_local.cli.options import (
    backend_option,
    device_option,
    job_options,
    json_option,
    print_json,
    quiet_option,
    read_draft,
)


@click.command()
@job_options
@backend_option
@device_option
@click.option("--dry-run", is_flag=True, help="Plan only: no weights are loaded.")
@quiet_option
@json_option
def train(
    job: Path | None,
    sets: tuple[str, ...],
    preset: str,
    backend: str,
    device: str,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train the adapter that JOB describes.

    Without JOB and --model the embedded job: the tiny model on its sample data.
    """
    draft = read_draft(job, sets=sets, preset=preset, flags=flags)
    if dry_run:
        from qwen_local.cli.plan import print_plan

        print_plan(draft, backend=backend, device=device, as_json=as_json)
        return
    from qwen_local.training.run import train as run

    summary = run(draft, backend=backend, device=device, quiet=quiet)
    if as_json:
        print_json(summary.to_json())
    else:
        click.echo(summary.adapter)
