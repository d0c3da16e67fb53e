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
    from qwen_local.training.resume import ResumePoint

MACHINES = ["m4-pro-24", "m4-pro-48", "rtx-3090", "a800"]
"""Keys of `qwen_local.training.named_machines.NAMED`; a copy keeps `--help` fast (tested)."""


@click.command()
@job_options
@backend_option
@device_option
@click.option(
    "--for",
    "elsewhere",
    type=click.Choice(MACHINES),
    help="Plan for this machine instead of the present one.",
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
    """Show what JOB would do: counts, steps, data, memory. No weights are loaded."""
    draft = read_draft(job, sets=sets, preset=preset, flags=flags)
    print_plan(draft, backend=backend, device=device, elsewhere=elsewhere, as_json=as_json)


def print_plan(
    draft: Draft,
    *,
    backend: str,
    device: str,
    as_json: bool,
    elsewhere: str | None = None,
    resume: ResumePoint | None = None,
) -> None:
    """Print the page of `plan` and `train --dry-run`, with the flags of `train`."""
    from qwen_local.cli.flags import command_of, flags_of, text_with_flags, with_flags
    from qwen_local.training.plan import plan_job
    from qwen_local.training.plan_page import plan_json, plan_page

    plan = plan_job(draft, backend=backend, device=device, elsewhere=elsewhere, resume=resume)
    program = click.get_current_context().find_root().command
    flags = flags_of(command_of(program, ["train"]))  # of which `plan` has only some
    if not as_json:
        click.echo(text_with_flags(plan_page(plan, elsewhere), flags))
        return
    content = plan_json(plan, elsewhere)
    content["data"] = text_with_flags(content["data"], flags)
    content["memory_hint"] = text_with_flags(content["memory_hint"] or "", flags) or None
    content["refusals"] = [with_flags(message, flags) for message in content["refusals"]]
    print_json(content)
