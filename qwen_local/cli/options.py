"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from qwen_local.inference.sampling_options import SamplingOptions
    from qwen_local.job.schema import Draft
    from qwen_local.resolve.request import Request

Command = TypeVar("Command", bound=Callable[..., Any])

PRESETS = ["auto", "tiny", "small", "medium", "large", "none"]
"""Copy of `job.presets.PRESET_NAMES`, so that `--help` does not import pydantic (tested)."""
QUANTIZATIONS = ["none", "4bit", "8bit"]
"""`qwen_local.job.schema.Quantization`, likewise."""

DATA_ENDINGS = {".jsonl", ".csv", ".parquet"}
"""Of no job file; a job may end in `.json`, because JSON is YAML."""

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
    help="Device; either engine runs on a CPU.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but errors on stderr.")


class _JobFile(click.Path):
    """JOB: explains what a run, a data file or a misspelled name should have been."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of a file.

        Raises:
            InputError: it is none.
        """
        from qwen_local.errors import InputError
        from qwen_local.files import similar_name

        path = Path(value)
        if path.is_dir():
            from qwen_local.runs.run import is_run
            from qwen_local.training.resume import resume_command

            if is_run(path):
                again = f"to continue it: {resume_command(path)}"
                raise InputError.at(str(path), "is a run; expected a job file", again)
            raise InputError.at(str(path), "is a folder; expected a job file")
        if path.suffix in DATA_ENDINGS:
            problem = "is a file of data; expected a job file (YAML)"
            raise InputError.at(str(path), problem, f"pass `data={path}`")
        if not path.exists():
            meant = similar_name(path, "*.yaml")
            hint = None if meant is None else f"did you mean {meant}?"
            raise InputError.at(str(path), "there is no such job file", hint)
        return super().convert(value, param, ctx)


def job_options(command: Command) -> Command:
    """Add JOB, the options for the most common keys, `--set` and `--preset`."""
    decorators = [
        click.argument(
            "job",
            required=False,
            type=_JobFile(path_type=Path),
        ),
        click.option("--model", help="Hub id, local folder, or qwen-local/tiny."),
        click.option("--data", help="File, folder or hub id to train on."),
        click.option("--eval-data", help="File, folder or hub id to evaluate on."),
        click.option("--epochs", type=int, help="Number of passes over the data."),
        click.option("--steps", type=int, help="Number of optimizer steps, instead of epochs."),
        click.option("--batch-size", type=int, help="Rows per optimizer step."),
        click.option("--learning-rate", type=float, help="Peak learning rate."),
        click.option("--lora-rank", type=int, help="Rank of the adapter."),
        click.option(
            "--lora-alpha",
            type=float,
            help="Scale of the adapter times its rank; default 2 x rank.",
        ),
        click.option(
            "--lora-dropout", type=float, help="Dropout probability of the adapter's inputs."
        ),
        click.option(
            "--quantization",
            type=click.Choice(QUANTIZATIONS),
            help="Quantize the frozen base model (QLoRA).",
        ),
        click.option("--max-length", type=int, help="Maximum row length in tokens."),
        click.option(
            "--seed", type=int, help="Seed of row order, adapter initialization and dropout."
        ),
        click.option("--output", help="Run directory; default runs/<model>-<date>-<n>."),
        click.option(
            "--set",
            "sets",
            multiple=True,
            metavar="KEY=VALUE",
            help="Set any key of the job, such as train.schedule=linear; see docs/job.md.",
        ),
        click.option(
            "--preset",
            type=click.Choice(PRESETS),
            default="auto",
            show_default=True,
            help="Defaults for the keys that are not set; auto chooses by model size.",
        ),
    ]
    return _decorated(command, decorators)


def answer_options(command: Command) -> Command:
    """Add the options of `generate` and `chat`: model, adapter, prompt and sampling."""
    decorators = [
        click.option(
            "--model",
            help="Hub id, local folder, or qwen-local/tiny; default the adapter's base model.",
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
            help="Quantize the base model; default as in the adapter's training.",
        ),
        click.option("--system", help="System message."),
        click.option(
            "--thinking/--no-thinking",
            default=None,
            help="Thinking mode, for models that have one; default as in the adapter's training.",
        ),
        click.option("--temperature", type=float, help="Sampling temperature; 0 = greedy."),
        click.option(
            "--top-p",
            type=float,
            help="Sample from the most probable tokens with this total probability.",
        ),
        click.option(
            "--top-k", type=int, help="Sample from this many most probable tokens; 0 = all."
        ),
        click.option(
            "--min-p", type=float, help="Minimum probability, relative to the most probable token."
        ),
        click.option(
            "--repetition-penalty", type=float, help="Above 1, earlier tokens are less probable."
        ),
        click.option("--greedy", is_flag=True, help="Always take the most probable token."),
        click.option("--seed", type=int, help="Seed of the sampling."),
    ]
    return _decorated(command, decorators)


def export_options(command: Command) -> Command:
    """Add the options for the fields of `qwen_local.export.opening.ExportRequest`."""
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
            help="New folder for the result.",
        ),
        click.option("--model", help="Base model; default the one that the adapter names."),
        click.option("--revision", help="Commit, branch or tag of a hub model."),
        click.option(
            "--quantization",
            type=click.Choice(QUANTIZATIONS),
            help="Quantization of the base model in training; default as recorded.",
        ),
    ]
    return _decorated(command, decorators)


def push_options(command: Command) -> Command:
    """Add the options for uploading the result to the hub."""
    decorators = [
        click.option(
            "--push-to-hub",
            metavar="OWNER/NAME",
            help="Upload the finished folder to the hub: weights, configurations, card.",
        ),
        click.option(
            "--private", is_flag=True, help="With --push-to-hub: make the repository private."
        ),
    ]
    return _decorated(command, decorators)


def _decorated(command: Command, decorators: Sequence[Callable[[Command], Command]]) -> Command:
    """Return the command with these options, in their order in `--help`."""
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def take_request(options: dict[str, Any]) -> Request:
    """Move the model, the adapter and where they run out of the options of a command."""
    from qwen_local.resolve.request import Request

    keys = ("model", "revision", "adapter", "quantization", "backend", "device")
    return Request(**{key: options.pop(key) for key in keys})


def take_sampling(options: dict[str, Any]) -> SamplingOptions:
    """Move the sampling options out of the options of a command."""
    from qwen_local.inference.sampling_options import SamplingOptions

    return SamplingOptions(
        **{field.name: options.pop(field.name) for field in fields(SamplingOptions)}
    )


def read_draft(
    job: Path | None, *, sets: tuple[str, ...], preset: str, flags: dict[str, Any]
) -> Draft:
    """Read the job of a command line.

    Args:
        job: the job file; None for the default job.
        sets: values of `--set`.
        preset: value of `--preset`.
        flags: value by option, with underscores; None if not given.
    """
    from qwen_local.job.schema import read_job

    return read_job(job, sets=sets, flags=flags, preset=preset)


def print_json(content: Any) -> None:
    """Print one JSON object on stdout. JSON has no NaN: a number that is not finite is a bug."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
