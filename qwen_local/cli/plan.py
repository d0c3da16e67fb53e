"""`qwen-local plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_local.cli.options import (
    backend_option,
    device_option,
    job_options,
    json_option,
    print_json,
    read_draft,
)

if TYPE_CHECKING:
    from qwen_local.job.schema import Draft

MACHINES = ["m4-pro-24", "m4-pro-48", "rtx-3090", "a800"]
"""`qwen_local.training.named_machines.NAMED`, here so that `--help` stays quick (tested)."""


@click.command()
@job_options
@backend_option
@device_option
@click.option(
    "--for",
    "elsewhere",
    type=click.Choice(MACHINES),
    help="Plan for another machine than this one.",
)
@json_option
def plan(
    job: Path | None,
    sets: tuple[str, ...],
    preset: str,
    backend: str,
    device: str,
    elsewhere: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Say what JOB would do: counts, steps, data, memory. No weights are loaded."""
    draft = read_draft(job, sets=sets, preset=preset, flags=flags)
    print_plan(draft, backend=backend, device=device, elsewhere=elsewhere, as_json=as_json)


def print_plan(
    draft: Draft, *, backend: str, device: str, as_json: bool, elsewhere: str | None = None
) -> None:
    """What `plan` and `train --dry-run` print."""
    from qwen_local.training.plan import plan_job
    from qwen_local.training.plan_page import plan_json, plan_page

    plan = plan_job(draft, backend=backend, device=device, elsewhere=elsewhere)
    if as_json:
        print_json(plan_json(plan, elsewhere))
    else:
        click.echo(plan_page(plan, elsewhere))
