"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from qwen_local.job import Draft

Command = TypeVar("Command", bound=Callable[..., Any])

PRESETS = ["auto", "tiny", "small", "medium", "large", "none"]
"""`qwen_local.presets.CHOICES`, here so that `--help` need not import pydantic (tested)."""

backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", "mlx", "cuda"]),
    default="auto",
    show_default=True,
    help="Engine: MLX, or PyTorch (cuda).",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "gpu", "cpu"]),
    default="auto",
    show_default=True,
    help="Where it computes; either engine runs on a CPU.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress, no talk on stderr.")


def job_options(command: Command) -> Command:
    """JOB, the flags for what people change most, `--set` and `--preset`."""
    decorators = [
        click.argument(
            "job",
            required=False,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
        ),
        click.option("--model", help="Hub id, local folder, or qwen-local/tiny."),
        click.option("--data", help="File, folder or hub id to train on."),
        click.option("--eval-data", help="File or hub id to evaluate on."),
        click.option("--epochs", type=int, help="Passes over the data."),
        click.option("--steps", type=int, help="Optimizer steps, instead of epochs."),
        click.option("--batch-size", type=int, help="Rows of an optimizer step."),
        click.option("--learning-rate", type=float, help="Highest learning rate."),
        click.option("--lora-rank", type=int, help="Rank of the adapter."),
        click.option("--lora-alpha", type=float, help="Scale x rank; default 2 x rank."),
        click.option("--lora-dropout", type=float, help="Share of inputs dropped."),
        click.option("--max-length", type=int, help="Longest row in tokens."),
        click.option("--seed", type=int, help="Of order, adapter start and dropout."),
        click.option("--output", help="Folder of the run; default runs/<model>-<date>-<n>."),
        click.option(
            "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any key of the job."
        ),
        click.option(
            "--preset",
            type=click.Choice(PRESETS),
            default="auto",
            show_default=True,
            help="Fills what was left out, by the size of the model.",
        ),
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def read_draft(
    job: Path | None, *, sets: tuple[str, ...], preset: str, flags: dict[str, Any]
) -> Draft:
    """The job of a command line; `flags` are named as Python names them."""
    from qwen_local.job import read_job

    given = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
    return read_job(job, sets=sets, flags=given, preset=preset)


def print_json(content: Any) -> None:
    """One JSON object on stdout. JSON has no NaN: a number that is not finite is a bug."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
