"""Errors of the library name arguments; the command line shows them as its flags."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from qwen_local.cli import cli
from qwen_local.cli.flags import Flags, command_of, flags_of, with_flags
from qwen_local.errors import Fault, InputError


def of(*arguments: str) -> Flags:
    return flags_of(command_of(cli, arguments))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["train", "job.yaml", "--resume"], "train"),
        (["--debug", "plan", "data"], "plan"),
        (["data", "check", "--fix", "show"], "check"),
        (["data", "build", "movielens", "train"], "movielens"),
        (["data"], "data"),
        (["nothing"], "cli"),
    ],
)
def test_the_command_that_ran_is_found(arguments: list[str], name: str) -> None:
    assert command_of(cli, arguments).name == name


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("max_tokens: too many", "--max-tokens: too many"),
        ("adapter runs/x: its base model Qwen/Qwen3-4B: gone",
         "--adapter runs/x: its base model Qwen/Qwen3-4B: gone"),
        ("prompt -: expected UTF-8", "--prompt -: expected UTF-8"),
        ("a: b\n\nhint: set `device=cpu`, or leave `backend` out",
         "a: b\n\nhint: set --device cpu, or leave --backend out"),
        ("`backend=mlx` `device=gpu`: no GPU", "--backend mlx --device gpu: no GPU"),
        ("hint: add `output=my answers.jsonl`", "hint: add --output 'my answers.jsonl'"),
        ("hint: set `greedy=true` or `thinking=false`", "hint: set --greedy or --no-thinking"),
        ("hint: set `thinking=true`", "hint: set --thinking"),
    ],
)  # fmt: skip
def test_arguments_become_flags_of_the_command(message: str, shown: str) -> None:
    assert with_flags(message, of("generate")) == shown


@pytest.mark.parametrize(
    "message",
    [
        "model.quantization: expected none, 4bit or 8bit; found '5bit'",
        "job.yaml:3: output: not a folder",
        "output/a.jsonl:1: prompt: expected a string",
        "model.safetensors: truncated",
        "system.jsonl:3: broken",
        "models: expected one",
        "--batch: expected one",
        "the model: gone",
        "model\nwith a line end: gone",
        "seed",
        "hint: run `qwen-local export --to gguf`, or `wsl --update` in PowerShell",
        "hint: write `key: value` lines",
        "hint: in tokenizer_config.json, `Chat_Template`",
    ],
)
def test_keys_paths_and_commands_stay(message: str) -> None:
    assert with_flags(message, of("generate")) == message


def test_names_that_are_no_option_lose_their_backticks_and_nothing_else() -> None:
    message = "steps: expected one\n\nhint: set `steps=3` or `dtype`"
    assert with_flags(message, of("generate")) == (
        "steps: expected one\n\nhint: set steps=3 or dtype"
    )
    assert with_flags(message, of("train")).startswith("--steps: ")
    assert with_flags(message, of("train")).endswith("--steps 3 or dtype")


def test_the_value_of_resume_follows_an_equals_sign() -> None:
    flags = of("train")
    assert with_flags("hint: leave out `resume`", flags) == "hint: leave out --resume"
    assert with_flags("hint: set `resume=RUN`", flags) == "hint: set --resume=RUN"


def test_an_option_is_known_by_its_argument_and_by_its_own_name() -> None:
    check, train = of("data", "check"), of("train")
    assert with_flags("output: exists", check) == with_flags("fix: exists", check)
    assert with_flags("set x=1: unknown key", train) == with_flags("sets x=1: unknown key", train)
    assert with_flags("set x=1: unknown key", train) == "--set x=1: unknown key"


def test_every_fault_of_an_error_is_translated() -> None:
    error = InputError(
        [
            Fault("max_tokens", "too many", "at most 3"),
            Fault("data.jsonl:1", "broken"),
            Fault("seed", "expected 0 or more"),
            Fault("adapter x", "gone", "set `model`"),
        ]
    )
    assert with_flags(str(error), of("chat")) == (
        "--max-tokens: too many\n\nhint: at most 3\n\ndata.jsonl:1: broken\n\n"
        "--seed: expected 0 or more\n\n--adapter x: gone\n\nhint: set --model"
    )


def commands(group: click.Group) -> list[click.Command]:
    return [
        inner
        for command in group.commands.values()
        for inner in (commands(command) if isinstance(command, click.Group) else [command])
    ]


@pytest.mark.parametrize("command", commands(cli), ids=lambda command: str(command.name))
def test_a_flag_is_an_option_of_its_command(command: click.Command) -> None:
    known = {text for option in command.params for text in (*option.opts, *option.secondary_opts)}
    for flag in flags_of(command).values():
        assert {flag.name, flag.off or flag.name} <= known


# --- the library ---

PACKAGE = Path(__file__).parents[2] / "qwen_local"
FLAG = re.compile(r"(?<![\w-])--[a-z]")
COMMANDS = re.compile(r"qwen-local [a-z]|pip install|hf (?:up|down)load|wsl --|llama-cli|mlx_lm\.")
"""A text with a whole command, of this program or of another."""
EXCEPTIONS = {
    ("backends/probe.py", "--query-gpu"): "an argument of nvidia-smi",
    ("backends/probe.py", "--format=csv"): "an argument of nvidia-smi",
    ("cards/card.py", "--adapter-path"): "a part of an mlx_lm command",
    ("cards/card.py", "--chat-template-config"): "a part of an mlx_lm command",
    ("cards/card.py", "--model BASE"): "a part of a qwen-local command",
    ("demo.py", " chat --backend "): "a command of this program, by its path",
    ("training/restart.py", "--"): "the arguments of a child process",
}
"""(file, text in it) -> why it may name a flag."""


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield every string of a module but its docstrings; an f-string as one."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    parts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner = [part for part in node.values if isinstance(part, ast.Constant)]
            parts |= {id(part) for part in inner}
            yield "".join(str(part.value) for part in inner)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings | parts
        ):
            yield node.value


@pytest.mark.slow
def test_the_library_names_no_flag() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name.split("/")[0] == "cli":
            continue
        for text in texts(ast.parse(path.read_text("utf-8"))):
            if FLAG.search(text) and not COMMANDS.search(text):
                found.add((name, text))
    left = {
        (name, text)
        for name, text in found
        if not any(name == file and part in text for file, part in EXCEPTIONS)
    }
    assert not left
    for file, part in EXCEPTIONS:
        assert any(name == file and part in text for name, text in found), (file, part)
