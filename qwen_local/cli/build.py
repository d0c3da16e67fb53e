"""`qwen-local data build`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_local.cli.options import json_option, print_json, quiet_option

if TYPE_CHECKING:
    from qwen_local.recipes.output import RecipeSummary

Command = Callable[..., Any]


@click.group()
def build() -> None:
    """Build training data from published data sets."""


def recipe_options(command: Command) -> Command:
    """Add the options that every recipe has."""
    decorators = [
        click.option(
            "--output",
            required=True,
            type=click.Path(path_type=Path),
            help="Folder for train.jsonl and valid.jsonl.",
        ),
        click.option("--overwrite", is_flag=True, help="Replace these two files."),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample."),
        quiet_option,
        json_option,
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


fraction_option = click.option(
    "--eval-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Fraction of the rows for valid.jsonl.",
)


@build.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--train",
    type=click.IntRange(min=1),
    default=78_271,
    show_default=True,
    help="Rows of train.jsonl.",
)
@click.option(
    "--eval",
    type=click.IntRange(min=0),
    default=4_450,
    show_default=True,
    help="Rows of valid.jsonl.",
)
@click.option(
    "--history",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Maximum number of ratings in a prompt.",
)
@click.option(
    "--min-history",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Minimum number of earlier ratings by the user.",
)
@click.option(
    "--like-from",
    type=click.FloatRange(0.5, 5),
    default=4.0,
    show_default=True,
    help="Stars that mean Yes.",
)
@click.option("--balance", is_flag=True, help="As many Yes as No.")
@recipe_options
def movielens(folder: Path, **options: Any) -> None:
    """Would this user like this film, given these ratings? Yes or No.

    FOLDER holds ratings.csv and movies.csv of MovieLens 25M, 32M or latest-small.
    """
    from qwen_local.recipes.movielens import MovieLensOptions, build

    _run(build, folder, MovieLensOptions, options)


@build.command()
@click.argument("source")
@click.option(
    "--rows", type=click.IntRange(min=1), help="Rows of both files together; default all."
)
@click.option("--sample", is_flag=True, help="Sample the rows instead of taking the first.")
@fraction_option
@recipe_options
def code_alpaca(source: str, **options: Any) -> None:
    """Coding questions; the code in the answers is fenced.

    SOURCE is CodeAlpaca's published JSON, or a data set on the hub.
    """
    if options["sample"] and options["rows"] is None:
        raise click.UsageError("--sample needs --rows: the number of rows to sample.")
    from qwen_local.recipes.code_alpaca import CodeAlpacaOptions, build

    _run(build, source, CodeAlpacaOptions, options)


@build.command()
@click.argument("source")
@click.option("--text-column", default="text", show_default=True, help="Column of the texts.")
@click.option("--label-column", default="label", show_default=True, help="Column of the labels.")
@click.option(
    "--per-category",
    type=click.IntRange(min=1),
    default=150,
    show_default=True,
    help="Maximum number of rows per label.",
)
@click.option("--instruction", help="Prompt before the text; {categories} becomes the labels.")
@fraction_option
@recipe_options
def classification(source: str, instruction: str | None, **options: Any) -> None:
    """Prompts that ask for the label of a text.

    SOURCE is a .csv file with a column of texts and one of labels.
    """
    from qwen_local.recipes.classification import INSTRUCTION, ClassificationOptions, build

    options["instruction"] = instruction or INSTRUCTION
    _run(build, source, ClassificationOptions, options)


def _run(
    build: Callable[..., RecipeSummary],
    source: Path | str,
    make_options: Callable[..., Any],
    options: dict[str, Any],
) -> None:
    """Run a recipe.

    Args:
        build: function of the recipe.
        source: file, folder or hub id.
        make_options: class of the recipe's own options.
        options: of the command.
    """
    from qwen_local.console.log import log, talk

    output, overwrite, quiet, as_json = (
        options.pop(name) for name in ("output", "overwrite", "quiet", "as_json")
    )

    with talk(quiet=quiet):
        summary = build(source, output, overwrite=overwrite, options=make_options(**options))
        for note in summary.notes:
            log.warning("%s", note)
    if as_json:
        print_json(summary.to_json())
    else:
        click.echo(str(summary))
