"""`qwen-local export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qwen_local.cli.options import (
    QUANTIZATIONS,
    backend_option,
    device_option,
    json_option,
    print_json,
    quiet_option,
)


@click.command()
@click.option(
    "--adapter",
    required=True,
    type=click.Path(path_type=Path),
    help="A run, or a folder that PEFT or mlx-lm wrote.",
)
@click.option(
    "--to",
    required=True,
    type=click.Choice(["peft", "mlx", "gguf", "gguf-lora", "ollama"]),
    help="An adapter's layout, the merged model as GGUF, or that with a Modelfile.",
)
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="Folder of the export."
)
@click.option("--model", help="The base model; default the one that the adapter names.")
@click.option("--revision", help="Commit, branch or tag of a hub model.")
@click.option(
    "--quantization",
    type=click.Choice(QUANTIZATIONS),
    help="What the base was held in while training; default as recorded.",
)
@click.option(
    "--outtype",
    type=click.Choice(["f16", "bf16", "q8_0"]),
    help="What a merged GGUF holds its matrices in; default f16.",
)
@click.option(
    "--push-to-hub", metavar="OWNER/NAME", help="Upload the finished folder, and nothing else."
)
@click.option("--private", is_flag=True, help="With --push-to-hub: for your eyes only.")
@backend_option
@device_option
@quiet_option
@json_option
def export(
    to: Any,
    outtype: Any,
    push_to_hub: str | None,
    private: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Take an adapter to PEFT, mlx-lm, llama.cpp or Ollama.

    What is written is proved: the same text goes through the live adapter and through what is in the files; nothing is left
    behind where they differ.
    """
    from qwen_local.export.export import export as run
    from qwen_local.export.opening import Given
    from qwen_local.export.push import check_push, push
    from qwen_local.talk import talk

    if outtype is not None and to not in ("gguf", "ollama"):
        raise click.UsageError(f"--outtype is of a merged GGUF; --to {to} has none")
    if private and push_to_hub is None:
        raise click.UsageError("--private goes with --push-to-hub")
    if push_to_hub is not None:
        check_push(push_to_hub)
    with talk(quiet=quiet):
        exported = run(Given(**options), to=to, outtype=outtype or "f16")
        url = None
        if push_to_hub is not None:
            url = push(Path(exported.output).expanduser(), push_to_hub, private=private)
    if as_json:
        print_json(exported.to_json() | ({} if url is None else {"url": url}))
    else:
        click.echo(exported.output if url is None else url)
