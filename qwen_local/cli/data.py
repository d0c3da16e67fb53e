"""`qwen-local data`: inspect and build training data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_local.cli.build import build
from qwen_local.cli.options import json_option, print_json, quiet_option
from qwen_local.cli.output import canvas_of_stdout, print_text

if TYPE_CHECKING:
    from qwen_local.inspection.draw import Canvas
    from qwen_local.job.schema import Job

REFUSED = 2
"""Exit code of a check of data that training would refuse."""
FORMATS = ["auto", "messages", "prompt", "alpaca", "sharegpt", "text"]
OVERLONG = ["drop", "cut", "error"]
TRAIN_ON = ["assistant", "last"]


@click.group()
def data() -> None:
    """Check, show and build training data."""


data.add_command(build)


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add FILE and the options for the keys of a job's data section."""
    decorators = [
        click.argument("file", required=False),
        click.option(
            "--job",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Take model and data from a job; other options override it.",
        ),
        click.option("--model", help="Model whose tokenizer counts; default qwen-local/tiny."),
        click.option("--format", type=click.Choice(FORMATS), help="Format of the records."),
        click.option("--max-length", type=int, help="Maximum row length in tokens."),
        click.option(
            "--overlong", type=click.Choice(OVERLONG), help="What to do with longer rows."
        ),
        click.option("--train-on", type=click.Choice(TRAIN_ON), help="Turns that are supervised."),
        click.option(
            "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set any key of a job."
        ),
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


@data.command()
@data_options
@click.option("--eval-data", help="File or hub id to evaluate on.")
@click.option("--limit", type=int, help="Maximum number of records to read from each source.")
@click.option(
    "--fix",
    "output",
    type=click.Path(path_type=Path),
    help="Write a repaired copy to a new .jsonl file.",
)
@quiet_option
@json_option
def check(output: Path | None, quiet: bool, as_json: bool, **options: Any) -> int:
    """Find every fault in FILE and count its supervised tokens.

    FILE is anything that `train` takes. The exit code is 2 if training would refuse it; with --fix,
    if no repaired copy could be written.
    """
    from qwen_local.console.visible import visible
    from qwen_local.inspection.check_page import describe
    from qwen_local.inspection.fix import check_free
    from qwen_local.inspection.inspect_job import check_job, fix_job, read_making

    if output is not None:
        check_free(output)
    job = _job(options, quiet=quiet)
    making = read_making(job)
    found = check_job(job, making, quiet=quiet)
    fixed = None if output is None else fix_job(job, making, output)
    if as_json:
        print_json({**found.to_json(), "fixed": fixed and fixed.to_json()})
    else:
        print_text(visible(describe(found, canvas_of_stdout())))
        if fixed is not None:
            print_text(visible(f"\n{fixed.describe()}"))
    return 0 if found.accepted or fixed is not None else REFUSED


@data.command()
@data_options
@click.option("--row", type=click.IntRange(min=1), help="Number of the record; default 1.")
@click.option(
    "--line", type=click.IntRange(min=1), help="Line of the record, as in error messages."
)
@click.option("--ids", is_flag=True, help="Show every token with its id.")
@json_option
def show(row: int | None, line: int | None, ids: bool, as_json: bool, **options: Any) -> None:
    """Show a record of FILE with its context, supervised and cut tokens."""
    from qwen_local.inspection.inspect_job import read_making, show_job

    if row is not None and line is not None:
        raise click.UsageError("Name a record by --row or by --line, not by both.")
    job = _job(options, quiet=as_json)
    shown = show_job(job, read_making(job), row=row, line=line)
    if as_json:
        print_json(shown.to_json(ids=ids))
    else:
        canvas = canvas_of_stdout()
        print_text(shown.describe(canvas, ids=ids))
        click.echo(_legend(canvas), err=True)


def _job(options: dict[str, Any], *, quiet: bool) -> Job:
    """Read the job of a command line, of which only model and data are used."""
    from qwen_local.cli.options import read_draft

    if options["file"] is None and options["job"] is None:
        raise click.UsageError("Name a FILE, or a job with --job.")
    flags = {"data": options["file"]}
    flags |= {key: options.get(key) for key in ("model", "eval_data", "max_length")}
    keys = ("format", "overlong", "train_on", "limit")
    given = {key: options[key] for key in keys if options.get(key) is not None}
    sets = (*options["sets"], *(f"data.{key}={value}" for key, value in given.items()))
    draft = read_draft(options["job"], sets=sets, preset="none", flags=flags)
    if not quiet and not draft.sets("model.name"):
        note = f"Lengths are in tokens of {draft.model.name}; choose another model with --model."
        click.echo(note, err=True)
    return draft.job


def _legend(canvas: Canvas) -> str:
    from qwen_local.inspection.draw import marked

    parts = [marked("context", "context", canvas), marked("trained", "supervised", canvas)]
    return f"({', '.join([*parts, marked('cut', 'removed', canvas)])})"
