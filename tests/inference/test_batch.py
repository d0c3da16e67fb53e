"""Files answered in batches: as rows are answered alone, and taken up again where they stood."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_local.backends.machine import Engine
from qwen_local.inference.batch import ROWS, WINDOW, batches

pytestmark = pytest.mark.slow

Cli = Callable[..., Any]
TINY = "qwen-local/tiny"
GENERATE = ("generate", "--model", TINY, "--device", "cpu")
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
BATCH = (*GENERATE, "--batch", "q.jsonl", "--output", "a.jsonl")
SAID = f"{TINY} on PyTorch (cpu, float32): requested; PyTorch runs on the CPU\n"
COLORS = ("the sky", "grass", "snow", "blood", "coal")


def questions(count: int) -> list[dict[str, Any]]:
    """Of very different lengths, so that a batch has others before and behind it."""
    return [
        {"prompt": f"{'Well, ' * (at * 7 % 11)}what colour is {COLORS[at % 5]}? {at}"}
        for at in range(count)
    ]


def write(folder: Path, rows: list[Any], name: str = "q.jsonl") -> None:
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


def answers(folder: Path, name: str = "a.jsonl") -> list[Any]:
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def test_a_row_of_a_batch_is_answered_as_it_is_alone(
    engine: Engine, cli: Cli, tmp_path: Path
) -> None:
    rows = [*questions(5), {"id": "s", "prompt": "Hello", "system": "Be kind. 日本"}]
    write(tmp_path, rows)
    limit = ("--max-tokens", "12", "--backend", engine)
    said = cli(*BATCH, *limit)
    assert (said.code, said.out) == (0, "a.jsonl\n"), said.err
    found = answers(tmp_path)
    assert [row["id"] for row in found] == [1, 2, 3, 4, 5, "s"]
    for row in (found[0], found[3], found[5]):
        system = ("--system", row["system"]) if "system" in row else ()
        alone = cli(*GENERATE, *limit, *system, "--json", "--greedy", "--prompt", row["prompt"])
        single = json.loads(alone.out)
        assert row == {
            "id": row["id"],
            **{key: row[key] for key in ("prompt", "system") if key in row},
            "answer": single["text"],
            "finish_reason": single["finish_reason"],
            "prompt_tokens": single["prompt_tokens"],
            "completion_tokens": single["completion_tokens"],
        }


def test_the_answers_are_in_the_order_of_the_file_over_several_windows(
    cli: Cli, tmp_path: Path
) -> None:
    rows = questions(2 * WINDOW + 5)
    write(tmp_path, rows)
    said = cli(*BATCH, "--max-tokens", "2", "--json")
    assert said.code == 0, said.err
    assert [row["prompt"] for row in answers(tmp_path)] == [row["prompt"] for row in rows]
    found = json.loads(said.out)
    assert found.pop("tokens_per_second") > 0
    assert found == {
        "rows": len(rows),
        "before": 0,
        "answered": len(rows),
        "too_long": 0,
        "output": "a.jsonl",
    }


WATCHED = """
import os, runpy, sys, threading, time

def watch(path, signum):  # from within: under any load it comes before the last window
    while not (os.path.exists(path) and os.path.getsize(path)):
        time.sleep(0.001)
    os.kill(os.getpid(), signum)

threading.Thread(target=watch, args=("a.jsonl", int(sys.argv.pop(1))), daemon=True).start()
runpy.run_module("qwen_local", run_name="__main__", alter_sys=True)
"""
"""`qwen-local` that gets a signal once the first window of answers is in their file."""


def test_a_killed_run_goes_on_where_it_stood(tmp_path: Path, cli: Cli) -> None:
    write(tmp_path, questions(3 * WINDOW))
    limit = ("--max-tokens", "24")
    child = subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(int(signal.SIGKILL)), *BATCH, *limit],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    file = tmp_path / "a.jsonl"
    assert child.wait() == -signal.SIGKILL
    content = file.read_bytes()
    before = content.count(b"\n")
    assert 0 < before < 3 * WINDOW
    torn = b'{"id": 1, "prompt": "\xc3'  # as if it had been killed while it wrote
    file.write_bytes(content + torn)
    said = cli(*BATCH, *limit, "--json")
    assert said.code == 0
    assert said.err == (
        f"a.jsonl: {before} of {3 * WINDOW} rows are answered already\n{SAID}"
        f"{3 * WINDOW - before} rows answered\n"
    )
    found = json.loads(said.out)
    assert (found["before"], found["answered"]) == (before, 3 * WINDOW - before)
    assert file.read_bytes().startswith(content)
    whole = cli(*GENERATE, *limit, "--batch", "q.jsonl", "--output", "whole.jsonl", "--quiet")
    assert (whole.code, whole.out, whole.err) == (0, "whole.jsonl\n", "")
    assert file.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_ctrl_c_says_how_much_is_there(tmp_path: Path) -> None:
    write(tmp_path, questions(8 * WINDOW))
    child = subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(int(signal.SIGINT)), *BATCH, "--max-tokens", "64"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, said = child.communicate()
    assert child.returncode == 130
    done = len(answers(tmp_path))
    assert said.endswith(
        f"a.jsonl: {done} of {8 * WINDOW} rows; run the command again to continue\n\ninterrupted\n"
    )


def test_a_finished_file_is_left_as_it_is_and_rows_that_were_added_are_answered(
    cli: Cli, tmp_path: Path
) -> None:
    write(tmp_path, questions(3))
    limit = ("--max-tokens", "4")
    assert cli(*BATCH, *limit).code == 0
    first = (tmp_path / "a.jsonl").read_bytes()
    found = json.loads(cli(*BATCH, *limit, "--json").out)
    assert (found["before"], found["answered"], found["tokens_per_second"]) == (3, 0, None)
    assert (tmp_path / "a.jsonl").read_bytes() == first
    write(tmp_path, questions(4))
    assert json.loads(cli(*BATCH, *limit, "--json").out)["answered"] == 1
    assert (tmp_path / "a.jsonl").read_bytes().startswith(first)


def test_rows_that_leave_no_room_are_counted_and_the_others_answered(
    cli: Cli, tmp_path: Path
) -> None:
    write(tmp_path, [{"prompt": "7 " * 3000}, {"prompt": "What colour is the sky?"}])
    said = cli(*BATCH, "--json", "--max-tokens", "16")
    assert said.code == 0
    assert said.err == (
        f"{SAID}1 rows answered\n"
        "1 of 2 rows leave no room for 16 tokens in the model's 2048 positions (too_long)\n"
    )
    assert json.loads(said.out)["too_long"] == 1
    long, short = answers(tmp_path)
    assert (long["answer"], long["finish_reason"], long["completion_tokens"]) == ("", "too_long", 0)
    assert long["prompt_tokens"] > 2048
    assert (short["answer"], short["finish_reason"]) == ("The sky is blue.", "stop")


# --- refused ---


def test_answers_given_with_other_settings_are_not_gone_on_with(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, questions(1))
    assert cli(*BATCH, "--max-tokens", "4").code == 0
    before = (tmp_path / "a.jsonl").read_bytes()
    said = cli(*BATCH, "--max-tokens", "5", "--system", "Be kind.", "--backend", "mlx")
    hint = "hint: repeat the command unchanged, or choose another --output"
    there = "the file's answers were generated with"
    assert said.code == 2
    assert (
        f"a.jsonl.settings.json: max_tokens: {there} 4; found 5\n\n{hint}\n\n"
        f'a.jsonl.settings.json: system: {there} null; found "Be kind."\n\n{hint}\n\n'
        f'a.jsonl.settings.json: backend: {there} "cuda"; found "mlx"\n\n{hint}\n'
    ) in said.err
    assert "a.jsonl.settings.json: versions: " in said.err
    assert (tmp_path / "a.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"prompt": "a", "system": "Answer in French."}, {"prompt": "a"}),
        ({"prompt": "a"}, {"prompt": "a", "system": "Answer in French."}),
        ({"prompt": "a", "tools": [TOOL]}, {"prompt": "a"}),
        ({"prompt": "a"}, {"prompt": "a", "tools": [TOOL]}),
    ],
)
def test_a_row_that_has_changed_is_not_taken_for_answered(
    before: dict[str, Any], after: dict[str, Any], cli: Cli, tmp_path: Path
) -> None:
    write(tmp_path, [before])
    assert cli(*BATCH, "--max-tokens", "2").code == 0
    write(tmp_path, [after])
    said = cli(*BATCH, "--max-tokens", "2")
    assert said.code == 2
    assert (
        "a.jsonl:1: expected the answer to q.jsonl:1; found the answer to another prompt"
        in said.err
    )


def test_a_row_without_its_answer_is_not_taken_for_answered(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, [{"prompt": "a"}])
    assert cli(*BATCH, "--max-tokens", "2").code == 0
    (tmp_path / "a.jsonl").write_text('{"id": 1, "prompt": "a"}\n')
    said = cli(*BATCH, "--max-tokens", "2")
    assert (said.code, said.err.splitlines()[0]) == (2, "a.jsonl:1: not a row of answers")
    (tmp_path / "a.jsonl").write_text("[" * 100_000 + "\n")
    assert cli(*BATCH, "--max-tokens", "2").code == 2


def test_rows_without_text_and_ids_that_stand_twice_are_refused(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, [{"prompt": " "}, {"prompt": "a", "id": 7}, {"prompt": "b", "id": 7}])
    said = cli(*BATCH)
    assert (said.code, said.err) == (
        2,
        "q.jsonl:1: prompt: expected text to answer; it is empty\n\n"
        "q.jsonl:3: id: 7 is also the id of q.jsonl:2\n",
    )


@pytest.mark.parametrize("output", ["", "/dev/null"])
def test_an_output_that_is_no_file_is_refused(output: str, cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, questions(1))
    said = cli(*BATCH[:-1], output)
    assert (said.code, said.err) == (
        2,
        f"--output: expected a file name; found {str(Path(output))!r}\n",
    )


def test_answers_of_another_adapter_are_not_gone_on_with(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, questions(1))
    assert cli(*BATCH, "--max-tokens", "4").code == 0
    settings = tmp_path / "a.jsonl.settings.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "adapter": "abc"}))
    said = cli(*BATCH, "--max-tokens", "4")
    assert said.code == 2
    assert said.err.endswith(
        "a.jsonl.settings.json: adapter: the file's answers were generated with another adapter\n\n"
        "hint: repeat the command unchanged, or choose another --output\n"
    )


@pytest.mark.parametrize(
    ("change", "where", "problem"),
    [
        (lambda lines: lines[::-1], 1, "expected the answer to q.jsonl:1; found the answer to "
         "another prompt"),
        (lambda lines: [*lines, lines[0]], 3, "there are more answers than prompts"),
        (lambda lines: ["[]", lines[1]], 1, "not a row of answers"),
        (lambda lines: [lines[0], "{"], 2, "not a row of answers"),
    ],
    ids=["order", "too many", "no object", "no JSON"],
)  # fmt: skip
def test_rows_that_are_not_the_answers_are_refused_and_kept(
    change: Callable[[list[str]], list[str]], where: int, problem: str, cli: Cli, tmp_path: Path
) -> None:
    write(tmp_path, questions(2))
    assert cli(*BATCH, "--max-tokens", "4").code == 0
    file = tmp_path / "a.jsonl"
    changed = "".join(f"{line}\n" for line in change(file.read_text().splitlines()))
    file.write_text(changed)
    said = cli(*BATCH, "--max-tokens", "4")
    assert (said.code, said.out, file.read_text()) == (2, "", changed)
    assert said.err == (
        f"a.jsonl:{where}: {problem}\n\n"
        "hint: repeat the command unchanged, or choose another --output\n"
    )


def test_a_file_of_others_is_neither_cut_nor_appended_to(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, questions(1))
    (tmp_path / "a.jsonl").write_text("mine, without a line end")
    said = cli(*BATCH)
    assert (said.code, (tmp_path / "a.jsonl").read_text()) == (2, "mine, without a line end")
    assert said.err == (
        "a.jsonl: the file exists and was not written by this command\n\n"
        "hint: choose another --output\n"
    )


def test_two_processes_do_not_write_to_one_file(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, questions(1))
    file = os.open(tmp_path / "a.jsonl", os.O_CREAT | os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    said = cli(*BATCH)
    os.close(file)
    assert (said.code, said.err) == (
        3,
        "a.jsonl: another process writes answers to it\n\nhint: wait for it, or stop it first\n",
    )


def test_rows_that_cannot_be_asked_are_refused_before_a_model_is_loaded(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_local.inference.batch.Generator", None)
    write(tmp_path, [{"prompt": 1}, {"prompt": "Hi"}, {"prompt": 2}])
    said = cli(*BATCH)
    hint = "hint: write a string in quotes"
    assert (said.code, said.err) == (
        2,
        f"q.jsonl:1: prompt: expected a string; found 1\n\n{hint}\n\n"
        f"q.jsonl:3: prompt: expected a string; found 2\n\n{hint}\n",
    )
    assert not (tmp_path / "a.jsonl").exists()


def test_nothing_is_left_where_the_model_cannot_be_opened(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, questions(1))
    said = cli("generate", "--model", "nowhere", "--batch", "q.jsonl", "--output", "a.jsonl")
    assert said.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("--batch", "q.jsonl", "--prompt", "Hi"),
            "--prompt: expected either --prompt or --batch; found both",
        ),
        ((), "--prompt: expected either --prompt or --batch; found neither"),
        (
            ("--batch", "q.jsonl"),
            "--batch: expected --output for the answers; found none\n\n"
            "hint: add --output, for example answers.jsonl",
        ),
        (
            ("--prompt", "Hi", "--output", "a.jsonl"),
            "--output: has no effect without --batch; the answer to --prompt goes to stdout\n\n"
            "hint: leave it out",
        ),
        (
            ("--batch", "q.jsonl", "--output", "a", "--temperature", "0.7", "--top-k", "5"),
            "--temperature: has no effect: batches are always greedy\n\n"
            "hint: leave it out\n\n"
            "--top-k: has no effect: batches are always greedy\n\n"
            "hint: leave it out",
        ),
    ],
    ids=["both", "neither", "no output", "output of a prompt", "draws"],
)
def test_flags_that_do_not_go_together_are_refused(
    args: tuple[str, ...], message: str, cli: Cli, tmp_path: Path
) -> None:
    write(tmp_path, questions(1))
    said = cli(*GENERATE, *args)
    assert (said.code, said.out, said.err) == (2, "", f"{message}\n")


def test_flags_that_change_nothing_about_the_likeliest_token_are_taken(
    cli: Cli, tmp_path: Path
) -> None:
    write(tmp_path, questions(1))
    said = cli(*BATCH, "--max-tokens", "2", "--greedy", "--seed", "3", "--temperature", "0")
    assert said.code == 0


# --- batches ---


def test_a_batch_holds_rows_of_like_length_within_its_bounds() -> None:
    lengths = {at: at * 13 % 97 + 1 for at in range(WINDOW)}
    found = list(batches(lengths, 10))
    assert sorted(row for batch in found for row in batch) == list(range(WINDOW))
    assert [len(batch) for batch in found] == [ROWS] * (WINDOW // ROWS)
    in_turn = [lengths[row] for batch in found for row in batch]
    assert in_turn == sorted(in_turn, reverse=True)


def test_long_rows_are_answered_in_smaller_batches() -> None:
    found = list(batches(dict.fromkeys(range(10), 4_000), 1_000))
    assert [len(batch) for batch in found] == [3, 3, 3, 1]
