"""`qwen-local fuse`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from qwen_local.cli.options import (
    QUANTIZATIONS,
    backend_option,
    device_option,
    export_options,
    json_option,
    print_json,
    push_options,
    quiet_option,
)

if TYPE_CHECKING:
    from qwen_local.backends.machine import DType
    from qwen_local.job.schema import Quantization


@click.command()
@export_options
@click.option(
    "--requantize",
    type=click.Choice(QUANTIZATIONS),
    default="none",
    show_default=True,
    help="Quantize the merged model again, and measure the error.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    show_default=True,
    help="Number type of the merged weights; auto = as in the base model.",
)
@push_options
@backend_option
@device_option
@quiet_option
@json_option
def fuse(
    requantize: Quantization,
    dtype: DType | Literal["auto"],
    push_to_hub: str | None,
    private: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Merge an adapter into its base model, and test the result.

    The adapter is merged into the weights that it was trained on: for a quantized base model, the
    dequantized ones. If the merged model and the adapter in memory differ, nothing is kept.
    """
    from qwen_local.console.log import talk
    from qwen_local.export.fuse import fuse as run
    from qwen_local.export.opening import ExportRequest
    from qwen_local.export.push import check_push, push

    check_push(push_to_hub, private=private)
    with talk(quiet=quiet):
        fused = run(ExportRequest(**options), requantize=requantize, dtype=dtype)
        url = push(Path(fused.output), push_to_hub, private=private) if push_to_hub else None
    if as_json:
        print_json(fused.to_json() | ({} if url is None else {"url": url}))
    else:
        click.echo(fused.output if url is None else url)
