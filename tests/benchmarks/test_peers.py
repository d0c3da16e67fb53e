"""The comparison with other tools: the same work for all, honest figures, void where it differs."""

from __future__ import annotations

import json
import random
import shutil
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import growth, speed
from benchmarks.lengths import LONGEST
from benchmarks.peers import __main__ as program
from benchmarks.peers import models, turns
from benchmarks.peers.compare import Ratio, comparison, faults, table
from benchmarks.peers.models import give_tokenizer, make_model, no_room, without_last_line_end
from benchmarks.peers.orders import placed, reading_order
from benchmarks.peers.work import FIRST, FailedError, Work, last_line
from benchmarks.peers.workloads import made_rows, real_rows, said, words
from benchmarks.result import without_places
from qwen_local.backends.probe import probe
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.embedded import tiny_model_path


def report(**changed: Any) -> dict[str, Any]:
    """Of four steps, a second each; two of them are counted."""
    found = {
        "ends": [10.0, 11.0, 12.0, 13.0],
        "losses": [12.0, 11.9, 11.8, 11.7],
        "supervised": [40, 30, 20, 60],
        "tokens": [100, 90, 80, 120],
        "peak_memory_bytes": 1 << 30,
    }
    return {**found, **changed}


# --- the same work ---


@pytest.mark.parametrize("tool", turns.SIDES)
def test_what_a_tool_reads_in_its_order_are_the_rows_in_theirs(tool: str) -> None:
    order = reading_order(tool, 24, batch_size=4, seed=0)
    assert sorted(order) == list(range(24))
    file = placed(range(24), order)
    assert [file[i] for i in order] == list(range(24))


@pytest.mark.slow
def test_mlx_lm_itself_walks_through_the_rows_in_their_order() -> None:
    from mlx_lm.tuner.datasets import CacheDataset
    from mlx_lm.tuner.trainer import iterate_batches

    class Rows(list[dict[str, int]]):
        """As its data sets are: rows of two keys, tokens when asked for."""

        def process(self, row: dict[str, int]) -> tuple[list[int], int]:
            # The longer ones first, so that a sort by length would show.
            return [row["n"]] * (40 - row["n"]), 0

    order = reading_order("mlx-lm", 24, batch_size=4, seed=0)
    file = Rows({"n": n, "of": 24} for n in placed(range(24), order))
    np.random.seed(0)
    batches: Iterator[Any] = iterate_batches(CacheDataset(file), 4, 64)
    assert [int(n) for ids, _ in batches for n in np.array(ids)[:, 0]] == list(range(24))


def test_a_word_is_a_token_wherever_it_stands() -> None:
    tokenizer = ChatTokenizer.load(tiny_model_path())
    assert len(words()) > 200
    for word in words():
        once, twice = (tokenizer.encode_text(text).ids for text in (word, f"{word} {word}"))
        assert (len(once), len(twice)) == (2, 3), word  # and the end of the text


def test_a_long_row_fills_its_length_and_ends_with_the_answer(tmp_path: Path) -> None:
    shutil.copytree(tiny_model_path(), tmp_path / "model")
    give_tokenizer(tmp_path / "model")
    tokenizer = ChatTokenizer.load(tmp_path / "model")
    [row] = made_rows("long", 1)
    said_by = [("user", row["prompt"]), ("assistant", row["completion"])]
    [found] = tokenizer.encode_conversation(
        [{"role": who, "content": text} for who, text in said_by]
    )
    assert len(found.ids) == LONGEST
    assert found.ids[-1] == tokenizer.end_of_turn


def test_only_the_last_line_end_of_the_template_is_gone() -> None:
    import jinja2

    config = json.loads((tiny_model_path() / "tokenizer_config.json").read_text())
    template = jinja2.Template(without_last_line_end(config["chat_template"]))
    asked = [{"role": "user", "content": "1?"}]
    told = [*asked, {"role": "assistant", "content": "2."}]
    opened = "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(messages=asked, add_generation_prompt=True) == opened
    assert template.render(messages=told) == opened + "2.<|im_end|>"


def test_answers_of_the_code_workload_are_lognormal_and_prompts_even() -> None:
    rows = made_rows("code-alpaca", 2000)
    asked, answered = ([len(row[key].split()) for row in rows] for key in ("prompt", "completion"))
    assert (min(asked), max(asked)) == (12, 60)
    assert min(answered) >= 8 and max(answered) <= 300
    assert statistics.median(answered) == pytest.approx(65, abs=5)
    assert statistics.stdev(np.log(answered)) == pytest.approx(0.75, abs=0.05)  # 0.8, cut


def test_the_film_workload_asks_at_length_and_is_answered_in_a_word() -> None:
    rows = made_rows("movielens", 500)
    asked = [len(row["prompt"].split()) for row in rows]
    assert (min(asked), max(asked)) == (150, 350)
    assert {len(row["completion"].split()) for row in rows} == {1}


def test_a_workload_is_the_same_at_every_time() -> None:
    assert made_rows("code-alpaca", 5) == made_rows("code-alpaca", 50)[:5]


def test_real_rows_are_the_first_that_are_whole_and_short_enough(tmp_path: Path) -> None:
    records = [
        {"instruction": "Add.", "input": "1, 1", "output": "2."},
        {"instruction": "Say nothing.", "input": "", "output": ""},
        {"instruction": "Count.", "input": "", "output": said(random.Random(0), LONGEST)},
        {"prompt": "Hello?", "completion": "Yes."},
        {"instruction": "Never.", "input": "", "output": "Reached."},
    ]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(records))
    assert real_rows(file, 2) == [
        {"prompt": "Add.\n1, 1", "completion": "2."},
        {"prompt": "Hello?", "completion": "Yes."},
    ]
    with pytest.raises(FailedError) as failed:
        real_rows(file, 4)
    assert str(failed.value) == f"{file}: 3 rows can be used; 4 are needed: choose fewer --steps"


@pytest.mark.slow
def test_ours_and_trl_learn_the_same_and_lose_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.peers.sides import ours
    from qwen_local.runs.events import EventWriter

    model = tmp_path / "model"
    shutil.copytree(tiny_model_path(), model)
    give_tokenizer(model)
    reports = {}
    for tool in ("ours-torch", "trl"):
        folder = tmp_path / tool
        folder.mkdir()
        file = turns.laid_out(tool, made_rows("movielens", 4 * FIRST), folder)
        work = Work(
            model=str(model),
            data=str(file),
            folder=str(folder),
            device="cpu",
            dtype="float32",
            steps=FIRST,
        )
        if tool == "trl":
            reports[tool] = turns.run(tool, work, sys.executable)
            continue
        # Within this process, which has torch already.
        monkeypatch.setattr(EventWriter, "write", EventWriter.write)
        monkeypatch.setattr(sys, "argv", ["ours", str(work.save())])
        monkeypatch.setenv("BACKEND", "cuda")
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        ours.main()
        reports[tool] = json.loads((folder / "report.json").read_text())
    assert reports["trl"]["supervised"] == [8] * FIRST  # a word and the end of the turn
    assert [len(one["ends"]) for one in reports.values()] == [FIRST, FIRST]
    assert faults(reports["ours-torch"], reports["trl"], peer="trl", dtype="float32") == []


# --- figures ---


def test_two_who_did_the_same_are_at_no_fault() -> None:
    its = report(losses=[12.001, 11.901, 11.801])
    assert faults(report(), its, peer="trl", dtype="float32") == []


def test_losses_that_lie_apart_are_a_fault_and_so_is_none() -> None:
    its = report(losses=[12.0, 11.9 * 1.002, float("nan")])
    assert faults(report(), its, peer="trl", dtype="float32") == [
        "trl's loss of step 2 is 11.92380, ours 11.90000: more than 0.001 of it apart",
        "trl's loss of step 3 is nan, ours 11.80000: more than 0.001 of it apart",
    ]
    assert faults(report(), report(losses=[12.0, 11.9]), peer="trl", dtype="float32") == [
        "trl or ours told no loss of step 3"
    ]


def test_rounding_and_the_pad_token_of_mlx_lm_are_allowed_for() -> None:
    its = report(losses=[12.1, 12.0, 11.9])
    assert faults(report(), its, peer="trl", dtype="bfloat16") == []
    assert faults(report(), report(losses=[12.5, 12.4, 12.3]), peer="mlx-lm", dtype="float32") == []
    assert len(faults(report(), its, peer="trl", dtype="float32")) == FIRST


def test_other_prompts_are_a_fault_where_a_peer_tells_its_tokens() -> None:
    its = report(tokens=[100, 90, 81, 120])
    assert faults(report(), its, peer="trl", dtype="float32") == [
        "tokens from step 3 on: trl 81, 120; ours 80, 120"
    ]
    assert faults(report(), report(tokens=None), peer="mlx-lm", dtype="float32") == []


def test_other_tokens_are_a_fault_even_where_losses_agree() -> None:
    its = report(supervised=[40, 30, 21, 60])
    assert faults(report(), its, peer="trl", dtype="float32") == [
        "tokens learned from step 3 on: trl 21, 60; ours 20, 60"
    ]
    its = report(supervised=[40, 30, 20])
    assert faults(report(), its, peer="trl", dtype="float32") == [
        "tokens learned from step 4 on: trl none; ours 60"
    ]


def test_figures_are_medians_of_the_steps_after_the_warm_up_and_ratios_of_each_round() -> None:
    slow = {"ends": [0.0, 1.0, 5.0, 9.0], "peak_memory_bytes": 4 << 30}
    rounds = [
        {"ours-torch": report(), "trl": report(**slow)},
        {"ours-torch": report(ends=[0.0, 7.0, 8.0, 11.0]), "trl": report(**slow)},
        {"ours-torch": report(), "trl": report(**slow | {"ends": [0.0, 1.0, 5.0, 11.0]})},
    ]
    found = comparison(rounds, batch_size=4, dtype="float32")
    assert (found["rows"], found["supervised_tokens"], found["tokens"]) == (8, 80, 200)
    ours, trl = found["tools"]["ours-torch"], found["tools"]["trl"]
    assert (ours.examples_per_second, trl.examples_per_second) == (4.0, 1.0)
    assert (ours.supervised_per_second, ours.tokens_per_second) == (40.0, 100.0)
    assert found["ratios"] == {
        "trl": {
            "ours": "ours-torch",
            "speed": Ratio(median=4.0, least=2.0, most=5.0),
            "memory": Ratio(median=0.25, least=0.25, most=0.25),
        }
    }
    assert table({"small": found}).splitlines()[2:] == [
        "| small | ours-torch | 4 | 40 | 100 | 1.00 GiB |  |  |  |",
        "| small | trl | 1 | 10 | 25 | 4.00 GiB | 4.00 (2.00-5.00) | 0.25 (0.25-0.25) |  |",
    ]


def test_arrays_are_compared_where_both_count_them() -> None:
    counted = [{"ours-mlx": report(arrays_bytes=3), "mlx-lm": report(arrays_bytes=4)}] * 2
    found = comparison(counted, batch_size=4, dtype="float32")
    assert found["ratios"]["mlx-lm"]["arrays"] == Ratio(median=0.75, least=0.75, most=0.75)
    assert table({"mlx/long": found}).endswith("| 1.00 (1.00-1.00) | 0.75 (0.75-0.75) |")
    alone = [{"ours-mlx": report(arrays_bytes=3), "mlx-lm": report(arrays_bytes=None)}]
    assert "arrays" not in comparison(alone, batch_size=4, dtype="float32")["ratios"]["mlx-lm"]


def test_a_void_comparison_shows_no_ratio() -> None:
    rounds = [{"ours-mlx": report(), "mlx-lm": report(losses=[1.0, 1.0, 1.0])}] * 2
    found = comparison(rounds, batch_size=4, dtype="float32")
    assert len(found["void"]) == 2 * FIRST
    assert found["void"][-1] == (
        "round 2: mlx-lm's loss of step 3 is 1.00000, ours 11.80000: more than 0.05 of it apart"
    )
    assert table({"mlx/long": found}).endswith("| 1.00 GiB | void | void | void |")


# --- the program ---


def test_the_program_fails_and_says_so_where_a_comparison_is_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = [{"ours-torch": report(), "trl": report(losses=[1.0, 11.9, 11.8])}]
    figures = comparison(rounds, batch_size=4, dtype="float32")
    absent = {"skipped": {"llama-factory": "not installed: llamafactory"}}
    monkeypatch.setattr(program, "compared", lambda *_, **__: {**figures, **absent})
    file = tmp_path / "result.json"
    words_ = ["peers", "--only", "small/movielens", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", words_)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "small/movielens: without llama-factory: not installed: llamafactory\n"
        "small/movielens: void: round 1: trl's loss of step 1 is 1.00000, ours 12.00000: "
        "more than 0.001 of it apart\n"
    )
    result = json.loads(file.read_text())
    assert result["comparisons"]["small/movielens"]["tools"]["trl"]["examples_per_second"] == 4.0
    words_[-1] = without_places(str(file))
    assert result["command"] == f"python -m benchmarks.peers {' '.join(words_[1:])}"


def test_a_comparison_that_fails_costs_no_other_and_what_is_found_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    figures = comparison([{"ours-torch": report()}], batch_size=4, dtype="float32")
    written: list[Any] = []

    def compared(one: turns.Comparison, folder: Path, *_: Any, **__: Any) -> dict[str, Any]:
        written.append(json.loads(file.read_text())["comparisons"] if file.exists() else {})
        if one.name == "mlx/movielens":
            raise FailedError("ours-mlx ended with -9: without a word")
        settings = {"output_dir": f"{folder}/turn/out"}
        return {**figures, "skipped": {}, "reports": [{"ours-torch": {"settings": settings}}]}

    monkeypatch.setattr(program, "compared", compared)
    monkeypatch.setattr(sys, "argv", ["peers", "--output", str(file)])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 1
    said_ = capsys.readouterr()
    assert said_.err == "mlx/movielens: failed: ours-mlx ended with -9: without a word\n"
    assert said_.out.count("ours-torch") == 3
    found = json.loads(file.read_text())["comparisons"]
    names = ["mlx/code-alpaca", "mlx/movielens", "small/code-alpaca", "small/movielens"]
    assert [list(before) for before in written] == [names[:count] for count in range(4)]
    assert list(found) == names
    assert found["mlx/movielens"] == {"failed": "ours-mlx ended with -9: without a word"}
    assert found["small/movielens"]["reports"][0]["ours-torch"]["settings"] == {
        "output_dir": "<scratch>/turn/out"
    }


@pytest.mark.parametrize("output", ["-", "result.json"])
def test_after_each_comparison_the_ratios_are_said(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = report(ends=[0.0, 1.0, 15.0, 30.0], peak_memory_bytes=3 << 30)
    figures = comparison([{"ours-torch": report(), "trl": slow}], batch_size=4, dtype="float32")
    monkeypatch.setattr(program, "compared", lambda *_, **__: {**figures, "skipped": {}})
    monkeypatch.chdir(tmp_path)
    words_ = ["peers", "--only", "small/movielens", "--output", output]
    monkeypatch.setattr(sys, "argv", words_)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code is False
    assert capsys.readouterr().err == (
        "small/movielens: ours-torch 14.5 times trl's speed, 0.33 of its memory\n"
    )


@pytest.mark.parametrize(
    ("only", "gpu"),
    [
        ("small/movielens", "NVIDIA card that PyTorch"),
        ("mlx/movielens", "Apple GPU that MLX"),
    ],
)
def test_without_a_gpu_nothing_is_compared_on_one(
    only: str, gpu: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(program, "probe", lambda: replace(probe(), cuda=False, metal=False))
    monkeypatch.setattr(sys, "argv", ["peers", "--device", "gpu", "--only", only])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"no {gpu} can use: qwen-local doctor says why; --device cpu needs none\n"
    )


def test_the_last_line_brings_the_error_that_our_hint_belongs_to() -> None:
    assert last_line("a\n--data: no such file\n\nhint: name one\n") == (
        "--data: no such file; hint: name one"
    )
    assert last_line("Traceback:\n  ...\nMemoryError\n\n") == "MemoryError"
    assert last_line("\n") == "without a word"


def test_an_interpreter_that_is_none_is_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(program, "compared", measured)
    ended = tmp_path / "python"
    for text, reason in (
        (None, "No such file or directory"),
        ("#!/bin/sh\necho 'no module named site' >&2; exit 3\n", None),
    ):
        if text is not None:
            ended.write_text(text)
            ended.chmod(0o755)
        monkeypatch.setattr(sys, "argv", ["peers", "--python", f"trl={ended}"])
        with pytest.raises(SystemExit) as stopped:
            program.main()
        said_ = f": {reason}" if reason else " ended with 3: no module named site"
        assert stopped.value.code == f"--python trl: {ended}{said_}"


def test_what_is_compared_without_being_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(device: str, only: tuple[str, ...] = (), *data: Path) -> dict[str, tuple[str, ...]]:
        return {one.name: one.tools for one in program.comparisons(device, only, data)}

    monkeypatch.setattr(sys, "platform", "linux")
    torch, mlx = ("ours-torch", "trl", "llama-factory"), ("ours-mlx", "mlx-lm")
    assert names("cpu") == {
        "mlx/code-alpaca": mlx,
        "mlx/movielens": mlx,
        "small/code-alpaca": torch,
        "small/movielens": torch,
    }
    assert names("cpu", ("tiny/long",)) == {"tiny/long": (*torch, *mlx)}
    assert names("cpu", (), Path("x/real.json")) == {"mlx/real": mlx, "small/real": torch}
    on_gpu = (*torch, "unsloth")
    assert names("gpu") == {
        "Qwen3-0.6B/code-alpaca": on_gpu,
        "Qwen3-0.6B/movielens": on_gpu,
        "Qwen3-1.7B/code-alpaca": on_gpu,
        "Qwen3-1.7B/movielens": on_gpu,
        "Qwen3-8B/long": on_gpu,
    }
    monkeypatch.setattr(sys, "platform", "darwin")
    assert names("gpu") == {"Qwen3-0.6B/code-alpaca": mlx, "Qwen3-0.6B/movielens": mlx}
    assert names("cpu", ("small/unknown",)) == {}


def test_a_comparison_that_nobody_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    words_ = ["peers", "--only", "small/movielens", "--only", "small/films"]
    monkeypatch.setattr(sys, "argv", words_)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert str(ended.value.code).startswith("--only small/films: MODEL/WORKLOAD of tiny, ")


def test_a_tool_that_is_absent_or_fails_is_left_out_and_the_reason_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn: list[str] = []

    def run(tool: str, work: Work, python: str) -> dict[str, Any]:
        turn.append(tool)
        if tool == "trl" and len(turn) > 2:
            raise FailedError("trl ended with 1: out of memory")
        return report()

    monkeypatch.setattr(turns, "run", run)
    monkeypatch.setattr(turns, "make_model", lambda *_: tmp_path)
    monkeypatch.setattr(
        turns, "lacking", lambda _, needs: [name for name in needs if name == "unsloth"]
    )
    one = turns.Comparison(
        model="small", workload="movielens", tools=("ours-torch", "trl", "mlx-lm", "unsloth")
    )
    found = turns.compared(one, tmp_path, {}, "cpu", rounds=3, steps=4)
    first, second, third = turn[:3], turn[3:6], turn[6:]
    assert first == ["ours-torch", "trl", "mlx-lm"]
    assert second == ["mlx-lm", "trl", "ours-torch"]
    assert third == ["ours-torch", "mlx-lm"]
    assert found["skipped"] == {
        "unsloth": "not installed: unsloth",
        "trl": "trl ended with 1: out of memory",
    }
    assert [list(taken) for taken in found["reports"]] == [["ours-torch", "mlx-lm"]] * 3


def test_without_ours_there_is_no_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "lacking", lambda _, needs: [n for n in needs if n == "mlx_lm"])
    one = turns.Comparison(model="mlx", workload="movielens", tools=("ours-mlx", "mlx-lm"))
    with pytest.raises(FailedError) as failed:
        turns.compared(one, tmp_path, {}, "cpu", rounds=1, steps=4)
    absent = "not installed: mlx_lm"
    assert str(failed.value) == f"ours-mlx: {absent}; mlx-lm: {absent}"


def test_a_model_that_cannot_be_made_is_said_with_the_last_word_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import pathlib, sys; raise MemoryError('16 GB')"
    monkeypatch.setattr(models, "SCRIPT", script)
    with pytest.raises(FailedError) as failed:
        make_model("small", "float32", tmp_path)
    assert str(failed.value) == "making small ended with 1: MemoryError: 16 GB"
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_made_once_for_each_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import json, os, sys; os.mkdir(json.loads(sys.argv[1])[-1])"
    monkeypatch.setattr(models, "SCRIPT", script)
    made = [make_model("small", dtype, tmp_path) for dtype in ("float32", "bfloat16", "float32")]
    assert [folder.name for folder in made] == ["small-float32", "small-bfloat16", "small-float32"]
    assert sorted(tmp_path.iterdir()) == sorted(set(made))


def test_the_largest_model_is_not_made_where_card_or_disk_are_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 19 * 10**9

    assert no_room("Qwen3-8B", 16 * 10**9, tmp_path) == (
        "Qwen3-8B needs a card of 24 GB; this one has 16"
    )
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    assert no_room("Qwen3-8B", 25 * 10**9, tmp_path) == (
        "Qwen3-8B needs 20 GB of the temporary folder's disk; 19 are free"
    )
    Usage.free = 20 * 10**9
    assert no_room("Qwen3-8B", 25 * 10**9, tmp_path) is None
    assert no_room("Qwen3-1.7B", 8 * 10**9, tmp_path) is None


def test_a_part_of_comparisons_hands_each_over_and_goes_on_after_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = comparison([{"ours-torch": report()}], batch_size=4, dtype="float32")

    def compared(one: turns.Comparison, *_: Any, **__: Any) -> dict[str, Any]:
        if one.workload == "movielens":
            raise FailedError("no")
        return figures

    class Card:
        gpu_bytes = 8 * 10**9

    monkeypatch.setattr(turns, "compared", compared)
    monkeypatch.setattr(speed, "probe", Card)
    pairs = ("Qwen3-8B/long", "Qwen3-0.6B/movielens", "Qwen3-0.6B/code-alpaca")
    skipped, failed, void, whole, fine = speed.peers(
        "gpu", tmp_path, pairs=pairs, steps=4, rounds=1
    )
    assert skipped == {
        "comparison": "Qwen3-8B/long",
        "skipped_because": "Qwen3-8B needs a card of 24 GB; this one has 8",
    }
    assert (failed["failed"], void["holds"]) == ("no", False)
    assert whole["tools"]["ours-torch"]["examples_per_second"] == 4.0
    assert fine["check"] == "reasons why Qwen3-0.6B/code-alpaca is void"
    assert fine["holds"]


def test_a_roofline_of_a_model_for_which_there_is_no_room_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Card:
        gpu_bytes = 8 * 10**9

    monkeypatch.setattr(speed, "probe", Card)
    assert list(speed.rooflines("gpu", tmp_path, ("Qwen3-8B",))) == [
        {"skipped_because": "Qwen3-8B needs a card of 24 GB; this one has 8"}
    ]


def test_modules_that_an_interpreter_lacks_are_named() -> None:
    assert turns.lacking(sys.executable, ["json", "no_such_module"]) == ["no_such_module"]


# --- growth ---


def test_growth_is_what_the_largest_median_is_above_the_least() -> None:
    rows = [report(), report(ends=[0.0, 1.0, 2.0, 3.2]), report(ends=[0.0, 1.0, 2.0, 9.0])]
    more = [report(peak_memory_bytes=3 << 29)]
    found = growth.figures({1000: rows, 10_000: more})
    assert found["by_rows"]["1000"] == {
        "microseconds_per_token": pytest.approx(11_000),
        "peak_memory_bytes": 1 << 30,
    }
    assert found["time_spread"] == pytest.approx(0.1)
    assert found["memory_spread"] == pytest.approx(0.5)
    assert growth.verdict(found["time_spread"], found["memory_spread"]) == (
        "time per token 10.0 % apart, peak memory 50.0 % apart: at most 10 % is asked"
    )


def test_growing_files_begin_with_the_same_rows_in_the_order_of_training(tmp_path: Path) -> None:
    walked = []
    for rows in (16, 64):
        lines = growth.data_file(tmp_path / f"{rows}", rows).read_text().splitlines()
        order = reading_order("ours-torch", rows, batch_size=4, seed=0)
        assert len(lines) == rows
        walked.append([json.loads(lines[i]) for i in order[:16]])
    assert walked[0] == walked[1] == made_rows("code-alpaca", 16)
