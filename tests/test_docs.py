"""The documentation runs: its commands parse, its jobs load, its table of keys is the schema."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from pydantic import BaseModel

from qwen_local.cli import cli
from qwen_local.job.presets import PRESETS
from qwen_local.job.schema import SECTIONS, read_job

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


ROWS = {
    "python-functions": None,
    "movielens": {"prompt": "Heat 4.5, Babe 2.0. Would they like Casino?", "completion": "Yes"},
    "code-alpaca": {"instruction": "Print hello.", "input": "", "output": "print('hello')"},
    "qwen3-code-alpaca": {"instruction": "Print hello.", "input": "", "output": "print('hello')"},
}
"""A row as the data of each shipped job has it; None where its data are here."""


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_every_shipped_job_runs_in_form_on_the_embedded_model(
    job: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    row = ROWS[job.stem]
    if row is None:
        shutil.copytree(ROOT / "datasets/python-functions", tmp_path / "datasets/python-functions")
        changed = []
    else:
        (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 40)
        changed = ["--model", "qwen-local/tiny", "--data", "rows.jsonl"]
        if read_job(job).sets("data.eval"):
            changed += ["--eval-data", "rows.jsonl"]
    said = cli("train", job, "--device", "cpu", "--steps", "2", *changed)
    assert (said.code, said.out) == (0, f"runs/{job.stem}/adapter\n"), said.err


@pytest.mark.slow
def test_the_workflow_of_the_readme_runs(tmp_path: Path, cli: Callable[..., Any]) -> None:
    """Fewer steps; what is typed into the chat comes through a pipe."""
    shutil.copytree(ROOT / "docs/jobs", tmp_path / "docs/jobs")
    shutil.copytree(ROOT / "datasets/python-functions", tmp_path / "datasets/python-functions")
    page = (ROOT / "README.md").read_text("utf-8")
    section = page.partition("## The whole way")[2].partition("\n## ")[0]
    commands = re.findall(r"^\$ qwen-local (.*?)(?:  #.*)?$", section, re.M)
    assert [command.split()[0] for command in commands] == [
        *("doctor", "plan", "train", "generate", "fuse", "chat", "export")
    ]
    for command in commands:
        arguments = shlex.split(command)
        if arguments[0] == "train":
            arguments += ["--steps", "8"]
        said = cli(*arguments, stdin=b"What colour is the sky?\n")
        assert said.code == 0, (command, said.err)
        assert said.out


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
            if isinstance(written, BaseModel):
                written = f"{{{', '.join(f'{name}: {value}' for name, value in written)}}}"
            value = "null" if written is None else str(written)
            default = value.lower() if isinstance(field.default, bool) else value
            assert f"| `{section}.{key}` | {default} | {field.description} |" in page


def test_the_table_has_only_keys_of_the_schema() -> None:
    page = (ROOT / "docs/job.md").read_text("utf-8")
    keys = {f"{s}.{key}" for s, model in SECTIONS.items() for key in model.model_fields}
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", page, re.M)) == keys


def test_the_table_of_presets_matches_the_presets() -> None:
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


def ratios(device: str, peer: str) -> dict[str, dict[str, dict[str, float]]]:
    """Ours beside a peer, by comparison, as the committed results have it."""
    file = ROOT / f"benchmarks/results/peers-cpu-{device}.json"
    comparisons = json.loads(file.read_text("utf-8"))["comparisons"]
    return {name: found["ratios"][peer] for name, found in comparisons.items()}


def test_the_ratios_on_the_pages_are_those_of_the_results() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    readme = (ROOT / "README.md").read_text("utf-8")
    for device, peer, label in (
        ("torch", "trl", "TRL"),
        ("torch", "llama-factory", "LLaMA-Factory"),
        ("mlx", "mlx-lm", "mlx-lm"),
    ):
        found = ratios(device, peer)
        for name, ratio in found.items():
            speed = ratio["speed"]
            (said,) = (
                line for line in lines if line[:1] == [f"`{name}`"] and line[2].startswith(label)
            )
            assert said[3:] == [
                f"{speed['median']:.1f} ({speed['least']:.1f}-{speed['most']:.1f})",
                f"{ratio['memory']['median']:.2f}",
                f"{ratio['arrays']['median']:.2f}" if "arrays" in ratio else "",
            ]
        cells = (
            f"{one['speed']['median']:.1f} times the examples/s, "
            f"{one['memory']['median']:.2f} times the memory"
            for one in found.values()
        )
        [row] = (line for line in readme.splitlines() if line.startswith(f"| {label}"))
        assert row.endswith(f"| {' | '.join(cells)} |")


def test_the_growth_on_the_page_is_that_of_the_result() -> None:
    growth = json.loads((ROOT / "benchmarks/results/growth.json").read_text("utf-8"))
    sizes = [f"{one['peak_memory_bytes'] / 2**20:.0f}" for one in growth["by_rows"].values()]
    assert (
        f"time per token {100 * growth['time_spread']:.0f} % apart; "
        f"peak memory {sizes[0]}, {sizes[1]} and {sizes[2]} MiB"
    ) in (ROOT / "docs/benchmarks.md").read_text("utf-8")
