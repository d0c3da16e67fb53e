"""`qwen-local chat` as a person uses it, in a real terminal, and as a program does, by pipes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

from qwen_local.backends.machine import Engine

Cli = Callable[..., Any]
TINY = "qwen-local/tiny"
CHAT = ("chat", "--device", "cpu")
SKY = "What colour is the sky?"
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
PROMPT = "\x1b[?2004h"
"""What a terminal is told where a line begins to be edited: to mark what is pasted."""
STARTS_IN = 120
"""Seconds; it takes five on a quiet machine."""


@contextmanager
def terminal(
    cwd: Path, *args: str | Path, prompt: str = PROMPT, **environment: str
) -> Iterator[pexpect.spawn]:
    """`qwen-local ...` in a terminal of its own, at its first prompt."""
    child = pexpect.spawn(
        sys.executable,
        ["-m", "qwen_local", *map(str, args)],
        cwd=str(cwd),
        env={**os.environ, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1", **environment},
        encoding="utf-8",
        dimensions=(40, 160),
        timeout=STARTS_IN,
    )
    try:
        child.expect_exact(prompt, timeout=STARTS_IN)
        yield child
    finally:
        child.close(force=True)


def answer_to(child: pexpect.spawn, line: str) -> str:
    """What is shown between this line and the next prompt."""
    child.send(f"{line}\r")
    child.expect_exact(PROMPT)
    return str(child.before)


def test_a_person_talks_with_a_model(engine: Engine, tmp_path: Path) -> None:
    with terminal(tmp_path, *CHAT, "--model", TINY, "--backend", engine) as child:
        assert "answers: greedy\r\n" in child.before
        assert "type /help for commands; press Ctrl+D to exit\r\n" in child.before
        assert "The sky is blue.\r\n" in answer_to(child, SKY)
        assert "The sky is blue.\r\n" in answer_to(child, "/retry")
        assert "The sky is blue.\r\n" in answer_to(child, f"{UP}{UP}")  # the history of lines
        assert "know" in answer_to(child, "Grüße, 日本 🙂")
        child.send('"""\r')
        child.expect_exact(PROMPT)
        child.send("What colour\r")
        child.expect_exact(PROMPT)
        child.send('is grass?"""\r')
        child.expect_exact("Grass is green.\r\n")
        child.expect_exact(PROMPT)
        child.send("\x1b[200~Pasted,\nand more\x1b[201~\r")  # as a terminal pastes
        child.expect_exact(PROMPT)
        assert "(talk.jsonl: 5 questions" in answer_to(child, "/save talk.jsonl")
        child.send(f"half a li{CTRL_C}")
        child.expect_exact(PROMPT)
        child.send(CTRL_C)
        child.expect_exact("(press Ctrl+D to exit)\r\n")
        child.expect_exact(PROMPT)
        assert "cleared" in answer_to(child, "/clear")
        assert "message set" in answer_to(child, "/system Antworte kurz. 日本")
        assert "type /help for a list" in answer_to(child, "/nonsense")
        child.send(CTRL_D)
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0
    (row,) = (tmp_path / "talk.jsonl").read_text("utf-8").splitlines()
    messages = json.loads(row)["messages"]
    asked = [m["content"] for m in messages if m["role"] == "user"]
    assert asked == [SKY, SKY, "Grüße, 日本 🙂", "What colour\nis grass?", "Pasted,\nand more"]


def test_an_answer_is_shown_as_it_comes_and_ctrl_c_stops_it_alone(
    engine: Engine, endless_model: Path, tmp_path: Path
) -> None:
    args = (*CHAT, "--model", endless_model, "--backend", engine, "--max-tokens", "50000")
    with terminal(tmp_path, *args) as child:
        child.send("Hi\r")
        child.expect_exact("<think>")
        child.expect_exact("␛[31mred🙂日語é 🙂日語é ")  # and there is no end to come
        child.send(CTRL_C)
        child.expect_exact("(stopped)\r\n")
        assert str(child.before).count("🙂") < 2_000  # of some 3,500 that were to come
        child.expect_exact(PROMPT)
        child.send("Again\r")
        child.expect_exact("🙂日語é 🙂日語é ")
        child.send(CTRL_C)
        child.expect_exact("(stopped)\r\n")
        child.expect_exact(PROMPT)
        shown = answer_to(child, "/save talk.jsonl")
        assert "(talk.jsonl: 2 questions and answers; incomplete answers: 2" in shown
        child.send("/exit\r")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0
    messages = json.loads((tmp_path / "talk.jsonl").read_text("utf-8"))["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    for answer in (messages[1]["content"], messages[3]["content"]):
        assert answer.startswith("<think>ok</think>\x1b[31mred🙂日語é ")
        assert "\N{REPLACEMENT CHARACTER}" not in answer


@pytest.mark.parametrize("answering", [False, True])
def test_a_termination_ends_a_conversation_at_the_prompt_and_within_an_answer(
    answering: bool, endless_model: Path, tmp_path: Path
) -> None:
    args = (*CHAT, "--model", endless_model, "--max-tokens", "50000")
    with terminal(tmp_path, *args) as child:
        if answering:
            child.send("Hi\r")
            child.expect_exact("🙂日語é 🙂日語é ")
        child.kill(signal.SIGTERM)
        child.expect_exact("stopped by SIGTERM\r\n")
        child.expect(pexpect.EOF)
        child.wait()
    assert child.exitstatus == 143


def test_a_terminal_that_only_takes_text_does(endless_model: Path, tmp_path: Path) -> None:
    args = (*CHAT, "--model", endless_model, "--max-tokens", "40")
    with terminal(tmp_path, *args, prompt=">>> ", TERM="dumb") as child:
        child.send("日本\r")
        child.expect_exact(">>> ")
        shown = child.before
        assert "<think>ok</think>␛[31mred🙂日語é 🙂" in shown
        assert "\x1b" not in shown
        assert "(cut off after 40 tokens; see --max-tokens)\r\n" in shown
        child.send(CTRL_C)
        child.expect_exact(">>> ")
        child.send(CTRL_D)
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0


# --- pipes ---


def test_from_a_pipe_every_line_is_a_turn_and_stdout_has_the_answers_alone(
    engine: Engine, cli: Cli
) -> None:
    lines = f'{SKY}\n\n/system 日本\n"""\nWhat colour\nis grass?\n"""\r\nHello'
    said = cli(*CHAT, "--model", TINY, "--backend", engine, stdin=lines.encode())
    assert said.code == 0
    assert said.out == "The sky is blue.\nGrass is green.\nHello! How can I help you?\n"
    name = "MLX" if engine == "mlx" else "PyTorch"
    assert said.err == (
        f"qwen-local/tiny on {name} (cpu, float32): requested\n"
        "answers: greedy\n"
        "(system message set for the whole conversation; /clear starts over)\n"
    )


def test_a_pipe_gets_the_bytes_of_the_model_unchanged(cli: Cli, endless_model: Path) -> None:
    args = (*CHAT, "--model", endless_model, "--max-tokens", "37")
    said = cli(*args, stdin=b"Hi\n")
    assert said.out.startswith("<think>ok</think>\x1b[31mred🙂日語é 🙂")
    hidden = cli(*args, "--hide-thinking", stdin=b"Hi\n")
    assert f"<think>ok</think>{hidden.out}" == said.out
    assert "(thinking)\n(cut off after 37 tokens; see --max-tokens)\n" in hidden.err


def test_the_second_prompt_holds_the_first_turn_until_it_is_cleared(
    cli: Cli, engine: Engine
) -> None:
    long = " ".join(["seven"] * 400)
    args = (*CHAT, "--model", TINY, "--backend", engine, "--max-tokens", "8")
    said = cli(*args, stdin=f"{long}\n{long}\n{long}\n/clear\n{long}\n".encode())
    told = [line for line in said.err.splitlines() if "positions" in line]
    assert (said.code, len(told), said.out.count("\n")) == (1, 1, 3)
    tokens = int(told[0].split()[4])
    assert 2048 <= tokens < 3 * 1024
    assert "hint: use /clear to remove earlier turns" in said.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (
            (),
            b"",
            "--model: expected a model, or an --adapter that names one; found neither\n\n"
            "hint: for example --model Qwen/Qwen3-0.6B\n",
        ),
        (
            ("--model", TINY, "--top-k", "5"),
            b"",
            "--top-k: has no effect: the answers are greedy\n\n"
            "hint: also set --temperature, for example --temperature 0.7\n",
        ),
        (
            ("--model", TINY, "--max-tokens", "1"),
            b"Hi\ncaf\xe9\n",
            "stdin:2: expected UTF-8; found byte 0xe9 at 3\n",
        ),
        (
            ("--model", TINY, "--max-tokens", "1"),
            b'/system Be brief.\n"""\nHi\0\n"""\n',
            "stdin:3: expected text; found a NUL character (character 3)\n",
        ),
        (
            ("--model", TINY, "--compare"),
            b"Hi\n",
            "--compare: expected --adapter; found none\n\nhint: add --adapter, for example a run\n",
        ),
    ],
    ids=["no model", "no effect", "bytes", "NUL", "nothing to compare"],
)
def test_what_cannot_be_done_is_refused(
    args: tuple[str, ...], stdin: bytes, message: str, cli: Cli
) -> None:
    said = cli(*CHAT, *args, stdin=stdin)
    assert said.code == 2
    assert said.err.endswith(message)
    assert "Traceback" not in said.err


def test_a_seed_repeats_a_conversation_and_its_retries(cli: Cli, engine: Engine) -> None:
    args = (*CHAT, "--model", TINY, "--backend", engine, "--temperature", "3", "--seed")
    first, again, other = (
        cli(*args, seed, "--max-tokens", "12", stdin=b"Hello\n/retry\n").out
        for seed in ("5", "5", "6")
    )
    assert first == again != other
    one, two = first[: len(first) // 2], first[len(first) // 2 :]
    assert one != two


# --- two that are compared ---


def test_compared_in_a_pipe_each_model_answers_as_it_does_alone(
    engine: Engine, cli: Cli, changing_adapter: Path
) -> None:
    args = (*CHAT, "--model", TINY, "--backend", engine, "--max-tokens", "8")
    lines = f"{SKY}\nWhat colour is grass?\n".encode()
    both = cli(*args, "--adapter", changing_adapter, "--compare", stdin=lines)
    assert both.code == 0
    rows = [json.loads(line) for line in both.out.splitlines()]
    assert [list(row) for row in rows] == [["prompt", "base", "adapter"]] * 2
    assert [row["prompt"] for row in rows] == lines.decode().splitlines()
    for voice, own in (("base", ()), ("adapter", ("--adapter", changing_adapter))):
        alone = cli(*args, *own, stdin=lines)
        assert "".join(f"{row[voice]}\n" for row in rows) == alone.out
    assert rows[0]["base"] == "The sky is blue." != rows[0]["adapter"]


@pytest.mark.slow
def test_compared_in_a_terminal_the_answers_stand_side_by_side(
    changing_adapter: Path, tmp_path: Path
) -> None:
    args = (*CHAT, "--adapter", changing_adapter, "--compare", "--max-tokens", "8")
    with terminal(tmp_path, *args, NO_COLOR="1") as child:
        shown = answer_to(child, SKY)
        left = "--- base ---\r\nThe sky is blue.\r\n"
        assert f"{left}\x1b[2A\x1b[80G│ --- adapter ---\r\n\x1b[80G│ " in shown
        assert "of the adapter; incomplete answers: 1" in answer_to(child, "/save talk.jsonl")
        child.send("/exit\r")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0
    (saved,) = (tmp_path / "talk.jsonl").read_text("utf-8").splitlines()
    assert json.loads(saved)["messages"][1]["content"] != "The sky is blue."
