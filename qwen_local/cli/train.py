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
from qwen_local.training.child import this_child

RESUME = "--resume"


class _ResumeOption(click.Option):
    """Its value, if it has one, comes after `=`."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return f"{RESUME}[=CHECKPOINT]", self.help or ""


class _Train(click.Command):
    """Click lets an option's optional value be the next word: `--resume job.yaml` would be one."""

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
    cls=_ResumeOption,
    help="Go on from the run's newest checkpoint, or from this one; without JOB by its own job.",
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

    Without JOB and --model the embedded job: the tiny model on its sample data.
    """
    if job is None and resume is not None:
        from qwen_local.training.resume import find_run, job_of_run

        job = job_of_run(resume)
        if job is None:  # it is no path: the flags say which run is meant
            given = read_draft(None, sets=sets, preset=preset, flags=flags)
            run_meant = find_run(given, resume, any_model=not given.sets("model.name"))
            resume = str(run_meant.path)
            job = job_of_run(resume)
    draft = read_draft(job, sets=sets, preset=preset, flags=flags)
    if dry_run and resume is not None:
        from qwen_local.training.resume import find_run

        find_run(draft, resume)  # says where there is none
    if dry_run:
        from qwen_local.cli.plan import print_plan

        print_plan(draft, backend=backend, device=device, as_json=as_json)
        return 0
    if draft.job.train.restarts and this_child() is None:
        from qwen_local.training.restart import train_with_restarts

        return train_with_restarts(
            draft,
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
