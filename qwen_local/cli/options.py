"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from qwen_local.inference.sampling_options import Wishes
    from qwen_local.job.schema import Draft

Command = TypeVar("Command", bound=Callable[..., Any])

PRESETS = ["auto", "tiny", "small", "medium", "large", "none"]
"""Copy of `job.presets.PRESET_NAMES`, so that `--help` does not import pydantic (tested)."""
QUANTIZATIONS = ["none", "4bit", "8bit"]
"""`qwen_local.job.schema.Quantization`, likewise."""

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
        click.option("--eval-data", help="File, folder or hub id to evaluate on."),
        click.option("--epochs", type=int, help="Passes over the data."),
        click.option("--steps", type=int, help="Optimizer steps, instead of epochs."),
        click.option("--batch-size", type=int, help="Rows of an optimizer step."),
        click.option("--learning-rate", type=float, help="Highest learning rate."),
        click.option("--lora-rank", type=int, help="Rank of the adapter."),
        click.option(
            "--lora-alpha", type=float, help="The scale is alpha / rank; default 2 x rank."
        ),
        click.option("--lora-dropout", type=float, help="Share of inputs dropped."),
        click.option(
            "--quantization",
            type=click.Choice(QUANTIZATIONS),
            help="Of the frozen model (QLoRA).",
        ),
        click.option("--max-length", type=int, help="Longest row in tokens."),
        click.option("--seed", type=int, help="Of order, adapter start and dropout."),
        click.option("--output", help="Folder of the run; default runs/<model>-<date>-<n>."),
        click.option(
            "--set",
            "sets",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any key of the job: train.schedule=linear. docs/job.md has them.",
        ),
        click.option(
            "--preset",
            type=click.Choice(PRESETS),
            default="auto",
            show_default=True,
            help="Fills what was left out, by the size of the model.",
        ),
    ]
    return _decorated(command, decorators)


def answer_options(command: Command) -> Command:
    """Who answers, with what before the question, and how the answer is drawn."""
    decorators = [
        click.option(
            "--model",
            help="Hub id, local folder, or qwen-local/tiny; default the one the adapter names.",
        ),
        click.option("--revision", help="Commit, branch or tag of a hub model."),
        click.option(
            "--adapter",
            type=click.Path(path_type=Path),
            help="A run, or an adapter's folder: of PEFT, mlx-lm, LLaMA-Factory, Unsloth, ...",
        ),
        click.option(
            "--quantization",
            type=click.Choice(QUANTIZATIONS),
            help="Of the model; default as the adapter was trained.",
        ),
        click.option("--system", help="System message."),
        click.option(
            "--thinking/--no-thinking",
            default=None,
            help="For models that can do both; by default as the adapter was trained.",
        ),
        click.option("--temperature", type=float, help="How freely to draw; 0 = not at all."),
        click.option("--top-p", type=float, help="Draw from the likeliest with this probability."),
        click.option("--top-k", type=int, help="Draw from this many tokens; 0 = all."),
        click.option("--min-p", type=float, help="Draw from tokens this near to the likeliest."),
        click.option("--repetition-penalty", type=float, help="Above 1: say less of it again."),
        click.option("--greedy", is_flag=True, help="Always the likeliest token."),
        click.option("--seed", type=int, help="Repeats what was drawn."),
    ]
    return _decorated(command, decorators)


def export_options(command: Command) -> Command:
    """Add the options of an export: the fields of `qwen_local.export.opening.ExportRequest`."""
    decorators = [
        click.option(
            "--adapter",
            required=True,
            type=click.Path(path_type=Path),
            help="A run, or an adapter's folder: of PEFT, mlx-lm, LLaMA-Factory, Unsloth, ...",
        ),
        click.option(
            "--output",
            required=True,
            type=click.Path(path_type=Path),
            help="Folder to make.",
        ),
        click.option("--model", help="The base model; default the one that the adapter names."),
        click.option("--revision", help="Commit, branch or tag of a hub model."),
        click.option(
            "--quantization",
            type=click.Choice(QUANTIZATIONS),
            help="What the base was held in while training; default as recorded.",
        ),
    ]
    return _decorated(command, decorators)


def push_options(command: Command) -> Command:
    """Whether the finished folder goes to the hub."""
    decorators = [
        click.option(
            "--push-to-hub",
            metavar="OWNER/NAME",
            help="Upload the finished folder to the hub: weights, configurations, card.",
        ),
        click.option("--private", is_flag=True, help="With --push-to-hub: not for the public."),
    ]
    return _decorated(command, decorators)


def _decorated(command: Command, decorators: Sequence[Callable[[Command], Command]]) -> Command:
    """The command with these options, in their order in `--help`."""
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def take_wishes(options: dict[str, Any]) -> Wishes:
    """The sampling options out of those of a command."""
    from qwen_local.inference.sampling_options import Wishes

    return Wishes(**{field.name: options.pop(field.name) for field in fields(Wishes)})


def read_draft(
    job: Path | None, *, sets: tuple[str, ...], preset: str, flags: dict[str, Any]
) -> Draft:
    """The job of a command line; `flags` are named as Python names them."""
    from qwen_local.job.schema import read_job

    given = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
    return read_job(job, sets=sets, flags=given, preset=preset)


def print_json(content: Any) -> None:
    """One JSON object on stdout. JSON has no NaN: a number that is not finite is a bug."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
