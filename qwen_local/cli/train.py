"""`qwen-local train`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from qwen_local.cli.flags import JoinedOption
from qwen_local.cli.options import (
    backend_option,
    device_option,
    job_options,
    json_option,
    print_json,
    quiet_option,
    read_draft,
)
from qwen_local.training.child import this_child

RESUME = "--resume"


class _Train(click.Command):
    """Keeps the word after `--resume` from being its value, as click would have it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[__name__] = tuple(args)
        end = args.index("--") if "--" in args else len(args)
        options = [f"{RESUME}=" if arg == RESUME else arg for arg in args[:end]]
        return super().parse_args(ctx, [*options, *args[end:]])


@click.command(cls=_Train)
@job_options
@backend_option
@device_option
@click.option(
    RESUME,
    cls=JoinedOption,
    metavar="CHECKPOINT",
    help="Continue from the newest checkpoint, or from this one; without JOB, with the run's own.",
)
@click.option("--dry-run", is_flag=True, help="Plan only: no weights are loaded.")
@quiet_option
@json_option
@click.pass_context
def train(
    context: click.Context,
    /,
    job: Path | None,
    sets: tuple[str, ...],
    preset: str,
    backend: str,
    device: str,
    resume: str | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> int:
    """Train the adapter that JOB describes.

    Without JOB and --model, train the embedded job: the tiny model on its sample data.
    """
    read = partial(read_draft, sets=sets, preset=preset, flags=flags)
    point = None
    if resume is None:
        draft = read(job)
    else:
        from qwen_local.training.resume import draft_to_resume

        draft, point = draft_to_resume(job, resume, read)
        resume = str(point.path)
    if dry_run:
        from qwen_local.cli.plan import print_plan

        print_plan(draft, backend=backend, device=device, as_json=as_json, resume=point)
        return 0
    if this_child() is None:
        from qwen_local.training.restart import restarts_of, train_with_restarts

        restarts = restarts_of(draft, job=job, backend=backend, device=device)
    else:
        restarts = 0
    if restarts:
        return train_with_restarts(
            draft,
            restarts,
            context.meta[__name__],
            job=job,
            resume=resume,
            quiet=quiet,
            debug=context.find_root().params.get("debug", False),
        )
    from qwen_local.training.run import train as run

    summary = run(draft, backend=backend, device=device, quiet=quiet, resume=resume)
    if as_json:
        print_json(summary.to_json())
    else:
        click.echo(summary.adapter)
    return 0
