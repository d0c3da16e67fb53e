"""The documentation runs: its commands parse, its jobs load, its table of keys is the schema."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from qwen_local.cli import cli
from qwen_local.job import SECTIONS, read_job
from qwen_local.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("[!.]*/README.md")),
]
JOBS = sorted((ROOT / "docs/jobs").glob("*.yaml"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def commands() -> list[tuple[str, str]]:
    """(page, command) for each `$ qwen-local ...` of the documentation."""
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            lines = block.replace("\\\n", " ").splitlines()
            found += [
                (page.name, line[2:].split("  #")[0])
                for line in lines
                if line.startswith("$ qwen-local")
            ]
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_documented_command_parses(page: str, command: str) -> None:
    _, name, *arguments = shlex.split(command)
    arguments = [str(ROOT / a) if (ROOT / a).is_file() else a for a in arguments if a != "job.yaml"]
    with click.Context(cli) as context:
        cli.commands[name].make_context(name, arguments, parent=context)


def test_every_command_is_documented() -> None:
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    for name in cli.commands:
        assert f"qwen-local {name}" in text or f"make {name}" in text


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_every_shipped_job_loads(job: Path) -> None:
    assert read_job(job).complete(600_000_000).output == f"runs/{job.stem}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_job_in_a_page_loads(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        read_job(path).complete(600_000_000)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_table_of_keys_is_the_schema() -> None:
    page = (ROOT / "docs/job.md").read_text("utf-8")
    for section, model in SECTIONS.items():
        for key, field in model.model_fields.items():
            written = list(field.default) if isinstance(field.default, tuple) else field.default
            value = "null" if written is None else str(written)
            default = value.lower() if isinstance(field.default, bool) else value
            assert f"| `{section}.{key}` | {default} | {field.description} |" in page


def test_no_key_stands_in_the_table_that_the_schema_does_not_have() -> None:
    page = (ROOT / "docs/job.md").read_text("utf-8")
    keys = {f"{s}.{key}" for s, model in SECTIONS.items() for key in model.model_fields}
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", page, re.M)) == keys


def test_the_table_of_presets_is_what_the_presets_say() -> None:
    page = (ROOT / "docs/job.md").read_text("utf-8")
    for preset in PRESETS:
        [row] = re.findall(rf"^\| {preset.name} \|.*$", page, re.M)
        cells = [cell.split()[0] for cell in row.strip("|").split("|")]
        rank, dropout, rate, batch, epochs = cells[-5:]
        assert preset.values["lora.rank"] == int(rank)
        assert preset.values["lora.dropout"] == float(dropout)
        assert preset.values["train.learning_rate"] == float(rate)
        assert preset.values["train.batch_size"] == int(batch)
        assert preset.values["train.epochs"] == int(epochs)
