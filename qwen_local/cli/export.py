"""`qwen-local export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_local.cli.options import (
    backend_option,
    device_option,
    export_options,
    json_option,
    print_json,
    push_options,
    quiet_option,
)
from qwen_local.errors import Fault, InputError

if TYPE_CHECKING:
    from qwen_local.export.export import To
    from qwen_local.export.gguf_encoding import Outtype


@click.command()
@export_options
@click.option(
    "--to",
    required=True,
    type=click.Choice(["peft", "mlx", "gguf", "gguf-lora", "ollama"]),
    help="Adapter layout, the merged model as GGUF, or GGUF with a Modelfile.",
)
@click.option(
    "--outtype",
    type=click.Choice(["f16", "bf16", "q8_0"], case_sensitive=False),
    help="Number type of the matrices of a merged GGUF; default f16. For smaller ones, such as "
    "Q4_K_M, run llama.cpp's llama-quantize on it.",
)
@click.option("--name", help="Name of the model in the GGUF; default the run's folder.")
@click.option(
    "--thinking/--no-thinking",
    default=None,
    help="Thinking mode in Ollama; default as in the adapter's training.",
)
@push_options
@backend_option
@device_option
@quiet_option
@json_option
def export(
    to: To,
    outtype: Outtype | None,
    name: str | None,
    thinking: bool | None,
    push_to_hub: str | None,
    private: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert an adapter for PEFT, mlx-lm, llama.cpp or Ollama.

    The result is tested: the written files and the adapter in memory compute the same text. If they
    differ, the files are removed.
    """
    from qwen_local.console.log import talk
    from qwen_local.export.export import export as run
    from qwen_local.export.opening import ExportRequest
    from qwen_local.export.push import check_push, push

    faults = []
    if outtype is not None and to not in ("gguf", "ollama"):
        problem = f"applies to a merged GGUF, which --to {to} does not write"
        faults.append(Fault("--outtype", problem, "leave it out"))
    if name is not None and to in ("peft", "mlx"):
        faults.append(
            Fault("--name", f"applies to a GGUF, which --to {to} does not write", "leave it out")
        )
    if thinking is not None and to != "ollama":
        problem = f"applies to a Modelfile, which --to {to} does not write"
        faults.append(Fault("--thinking", problem, "leave it out"))
    if faults:
        raise InputError(faults)
    check_push(push_to_hub, private=private)
    with talk(quiet=quiet):
        exported = run(
            ExportRequest(**options),
            to=to,
            outtype=outtype or "f16",
            name=name,
            thinking=thinking,
            for_hub=push_to_hub is not None,
        )
        url = push(Path(exported.output), push_to_hub, private=private) if push_to_hub else None
    if as_json:
        print_json(exported.to_json() | ({} if url is None else {"url": url}))
    else:
        click.echo(exported.output if url is None else url)
