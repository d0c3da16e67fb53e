"""What a job would do: golden counts with nothing on disk, and that `train` then does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pytest import approx

from qwen_local.backends.machine import Machine
from qwen_local.runs.events import EvalEvent, StartEvent, TrainEvent, read_events
from qwen_local.runs.lock import locked
from qwen_local.training import plan as plan_module
from qwen_local.training import preparation

Cli = Callable[..., Any]

LAPTOP = Machine(
    system="Darwin",
    processor="arm64",
    mlx="0.32.4",
    metal=True,
    torch=None,
    torch_cuda=None,
    cuda=False,
    bfloat16=True,
    nvidia=False,
    driver=None,
    memory_bytes=16 * 10**9,
    gpu_bytes=11 * 10**9,
)
CODER = "Qwen/Qwen2.5-Coder-1.5B-Instruct"
QKVO = "lora.targets=[q_proj, k_proj, v_proj, o_proj]"


def planned(cli: Cli, *args: str | Path) -> dict[str, Any]:
    said = cli("plan", "--json", *args)
    assert (said.code, said.err) == (0, "")
    content: dict[str, Any] = json.loads(said.out)
    return content


def generated_rows(folder: Path, count: int) -> Path:
    """A file of so many different rows."""
    file = folder / f"{count}.jsonl"
    lines = (f'{{"prompt": "Rows before this one?", "completion": "{n}"}}\n' for n in range(count))
    file.write_text("".join(lines))
    return file


# --- golden counts: no weights, no tokenizer, no network ---


def test_run_1_of_r1_trains_0_141_percent_of_qwen2_5_coder(cli: Cli) -> None:
    found = planned(cli, "--model", CODER, "--lora-rank", "8", "--set", QKVO)
    assert found["trainable_parameters"] == 2_179_072
    assert found["total_parameters"] == 1_545_893_376
    assert found["trainable_percent"] == approx(0.1410, abs=5e-5)


def test_run_2_of_r1_trains_twice_as_much_with_twice_the_rank(cli: Cli) -> None:
    found = planned(cli, "--model", CODER, "--lora-rank", "16", "--set", QKVO)
    assert found["trainable_parameters"] == 4_358_144
    assert found["total_parameters"] == 1_548_072_448


def test_r4_trains_1_665_percent_of_qwen3(cli: Cli) -> None:
    found = planned(cli, "--model", "Qwen/Qwen3-0.6B", "--lora-rank", "16")
    assert found["trainable_parameters"] == 10_092_544
    assert found["total_parameters"] == 606_142_464
    assert found["trainable_percent"] == approx(1.665, abs=5e-4)


def test_run_3_of_r1_takes_39_steps(cli: Cli, tmp_path: Path) -> None:
    rows = generated_rows(tmp_path, 100)
    job = ("--model", CODER, "--data", rows, "--batch-size", "8", "--epochs", "3")
    found = planned(cli, *job, "--set", "data.eval_fraction=0")
    assert (found["rows"], found["eval_rows"]) == (100, 0)
    assert (found["steps_per_epoch"], found["optimizer_steps"]) == (13, 39)
    assert (found["evaluations"], found["evaluation_percent"]) == (0, 0.0)


@pytest.mark.slow
def test_the_job_of_r4_takes_234_813_steps_and_warms_up_over_7_044(
    cli: Cli, tmp_path: Path
) -> None:
    rows = generated_rows(tmp_path, 78_271)
    job = ("--model", "Qwen/Qwen3-0.6B", "--data", rows, "--batch-size", "1", "--epochs", "3")
    settings = ("--set", "data.eval_fraction=0", "--set", "train.warmup_ratio=0.03")
    found = planned(cli, *job, *settings)
    assert (found["optimizer_steps"], found["warmup_steps"]) == (234_813, 7_044)


@pytest.mark.slow
def test_a_process_of_its_own_without_cache_and_network_counts_the_same(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "qwen_local", "plan", "--json", "--model", "Qwen/Qwen3-0.6B"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert (found["trainable_parameters"], found["total_parameters"]) == (10_092_544, 606_142_464)
    assert done.stderr == b""
    assert list(tmp_path.iterdir()) == []


# --- what it says ---

REPORT = """\
model       Qwen/Qwen2.5-Coder-1.5B-Instruct
backend     mlx on the gpu in bfloat16 (there is an Apple GPU, which MLX uses through Metal)
parameters  18,464,768 trainable of 1,562,179,072 (1.182 %)
data        1000.jsonl: 947 rows to train on, 53 to evaluate on
adapter     rank 16, alpha 32 (scale alpha / rank), dropout 0.1; all-linear of all blocks
steps       357 (119 an epoch), warm-up 10; batch 8, learning rate 0.0002, cosine
evaluation  11 times, every 36 steps: about 9 % of the time
tokens      unknown: Qwen/Qwen2.5-Coder-1.5B-Instruct is not on this machine, so there is no \
tokenizer
memory      2,048 tokens computed at once, the most that a GPU gains from; activations are \
recomputed, as nothing would fit otherwise
  weights         3.09 GB
  adapter         0.07 GB
  optimizer       0.22 GB
  activations     1.54 GB
  head            2.49 GB
  cache           2.15 GB
  total           9.56 GB
  of the gpu     11.00 GB
  it fits
  with 2,048 tokens in every row, as the rows are not known
disk        up to 1.40 GB of the 100.00 GB that are free
output      runs/my-run
"""


def test_a_plan_on_the_sample_data_that_train_would_refuse_says_so(cli: Cli) -> None:
    said = "to evaluate on\n  the sample data, as none is given: train will ask for --data\n"
    assert said in cli("plan", "--model", "Qwen/Qwen3-0.6B").out
    assert "ask for --data" not in cli("plan").out


@pytest.mark.parametrize("form", ["plan", "train"])
def test_what_is_wrong_with_model_and_data_is_told_at_once(form: str, cli: Cli) -> None:
    found = cli(form, "--model", "./nope", "--data", "rows.jsonl", "--eval-data", "other.jsonl")
    relative = "hint: a relative path counts from the folder that the command runs in"
    assert found.err == (
        "./nope: expected an existing folder or a hub id; found neither\n\n"
        "hint: a hub id is <owner>/<model>\n\n"
        f"rows.jsonl: no such file or folder\n\n{relative}\n\n"
        f"other.jsonl: no such file or folder\n\n{relative}\n"
    )


def test_without_a_tokenizer_the_histogram_is_null_and_that_is_said(cli: Cli) -> None:
    found = planned(cli, "--model", "Qwen/Qwen3-0.6B")
    why = "Qwen/Qwen3-0.6B is not on this machine, so there is no tokenizer"
    assert (found["histogram"], found["tokens"], found["supervised_tokens"]) == (None, None, None)
    assert found["histogram_missing"] == why
    assert f"\ntokens      unknown: {why}\n" in cli("plan", "--model", "Qwen/Qwen3-0.6B").out


def test_the_whole_plan_is_told_to_a_person(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "probe", lambda **_: LAPTOP)
    monkeypatch.setattr(plan_module, "free_bytes", lambda folder: 100 * 10**9)
    generated_rows(tmp_path, 1000)
    job = ("--data", "1000.jsonl", "--output", "runs/my-run")
    said = cli("plan", "--model", CODER, *job)
    assert (said.code, said.err) == (0, "")
    assert said.out == REPORT


def test_a_plan_advises_4_bit_where_the_model_fits_only_so(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "probe", lambda **_: replace(LAPTOP, gpu_bytes=18 * 10**9))
    job = ("--model", "Qwen/Qwen3-8B", "--data", "qwen-local/sample", "--max-length", "512")
    least = ("train.micro_batch_tokens=256", "train.gradient_checkpointing=true")
    settings = [word for setting in least for word in ("--set", setting)]
    quantized = planned(cli, *job, "--quantization", "4bit", *settings)
    needed = f"{quantized['memory']['total'] / 1e9:.2f}"
    advice = f"model.quantization=4bit would leave room, with about {needed} of the 18.00 GB"
    assert quantized["advice"] is None
    assert planned(cli, *job)["advice"] == advice
    assert (
        "\n  of the gpu     18.00 GB\n"
        "  it does not fit: at most 90% may be used, 16.20 GB\n"
        "  with 512 tokens in every row, as the rows are not known\n"
        f"  advice: {advice}\n\nhint: it fits with --quantization 4bit\n"
    ) in cli("plan", *job).out


@pytest.mark.parametrize(
    ("memory", "settings", "hint"),
    [
        (18, [], "it fits with --quantization 4bit, --max-length 2048"),
        (
            18,
            ["train.micro_batch_tokens=8192", "train.gradient_checkpointing=false"],
            "it fits with train.micro_batch_tokens and train.gradient_checkpointing at auto, "
            "--quantization 4bit, --max-length 2048",
        ),
        (4, [], "take a smaller model, or a machine with more memory"),
    ],
)
def test_a_plan_that_does_not_fit_says_what_would(
    memory: int, settings: list[str], hint: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = replace(LAPTOP, gpu_bytes=memory * 10**9)
    monkeypatch.setattr(plan_module, "probe", lambda **_: there)
    job = ["--model", "Qwen/Qwen3-8B", "--data", "qwen-local/sample", "--max-length", "4096"]
    sets = [word for setting in settings for word in ("--set", setting)]
    assert planned(cli, *job, *sets)["memory_hint"] == hint
    if hint.startswith("it fits"):
        assert planned(cli, *job[:-1], "2048", "--quantization", "4bit")["memory"]["fits"]
        assert not planned(cli, *job[:-1], "4096", "--quantization", "4bit")["memory"]["fits"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plan", "train"])
def test_plan_and_train_say_the_same_of_a_quantization_that_wins_nothing(
    form: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model, of which a hundred fit into any machine."""
    monkeypatch.setattr(preparation, "peak_resident_bytes", lambda: 10**9)  # it would grow
    job = ("--backend", "mlx", "--device", "cpu", "--quantization", "4bit", "--steps", "1")
    advice = planned(cli, *job)["advice"]
    assert advice.startswith("model.quantization=none fits, with about ")
    assert advice.endswith(" GB; 4-bit saves memory, not time")
    said = cli(form, *job, "--output", "run")
    assert said.code == 0
    if form == "plan":
        assert f"\n  it fits\n  advice: {advice}\ndisk " in said.out
    else:
        assert said.err.count(f"\nadvice: {advice}\n") == 1
        assert f" advice: {advice}\n" in Path("run/run.log").read_text()


def test_the_lengths_of_the_rows_are_drawn_where_there_is_a_tokenizer(
    cli: Cli, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = ['{"prompt": "Say it.", "completion": "%s"}\n' % (" a" * n) for n in (1, 2, 70)]
    rows.write_text("".join(lines))
    found = planned(cli, "--data", rows)
    assert found["histogram"] == {"edges": [0, 32, 64, 128], "counts": [2, 0, 1]}
    assert found["histogram_missing"] is None
    drawn = cli("plan", "--data", rows).out.splitlines()
    at = next(n for n, line in enumerate(drawn) if line.startswith("tokens"))
    assert drawn[at] == (
        f"tokens      {found['tokens']} an epoch, {found['supervised_tokens']} of them "
        f"supervised ({found['supervised_tokens'] / found['tokens']:.0%})"
    )
    assert drawn[at + 1 : at + 5] == [
        "lengths     of all conversations, in tokens",
        "       1-32           2  " + "#" * 40,
        "      33-64           0",
        "      65-128          1  " + "#" * 20,
    ]


def test_a_run_without_rows_for_evaluation_says_so(cli: Cli, tmp_path: Path) -> None:
    said = cli("plan", "--data", generated_rows(tmp_path, 5))
    assert "\nevaluation  none: there are no rows for it\n" in said.out


@pytest.mark.slow
def test_the_reason_of_the_chosen_memory_is_the_same_in_train(cli: Cli) -> None:
    job = ("--backend", "mlx", "--device", "cpu", "--steps", "1")
    plan = planned(cli, *job)
    assert (plan["micro_batch_tokens"], plan["gradient_checkpointing"]) == (512, False)
    assert cli("train", *job, "--output", "run").err.count(f"\nmemory: {plan['memory_reason']}\n")


def test_an_evaluation_dearer_than_training_is_spoken_of(cli: Cli, tmp_path: Path) -> None:
    """11 rows evaluated before the first of 10 steps and after each; 39 rows trained."""
    job = ("--data", generated_rows(tmp_path, 50), "--batch-size", "4", "--epochs", "1")
    every = ("--set", "train.eval_every=1", "--set", "data.eval_fraction=0.2")
    assert (
        "\nevaluation  11 times, every 1 steps: about 61 % of the time\n"
        "  evaluation would take about 1.6 times as long as training; train.eval_every=auto "
        "evaluates every 10 steps, about 22 % of the time\n"
    ) in cli("plan", *job, *every).out
    assert planned(cli, *job)["evaluation_advice"] is None


def test_a_disk_that_is_too_small_is_told(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "free_bytes", lambda folder: 10**6)
    assert planned(cli)["disk_free_bytes"] == 10**6
    assert (
        "\ndisk        up to 0.02 GB of the 0.00 GB that are free\n\n"
        "hint: make room, set output to a folder elsewhere, or lower train.keep\n\noutput "
    ) in cli("plan").out


# --- of another machine ---


@pytest.mark.parametrize(
    ("name", "backend", "fits"),
    [
        ("m4-pro-24", "mlx", False),
        ("m4-pro-48", "mlx", True),
        ("rtx-3090", "cuda", True),
        ("a800", "cuda", True),
    ],
)
def test_a_job_is_planned_for_a_machine_that_is_not_here(
    name: str, backend: str, fits: bool, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(**_: object) -> Machine:
        raise AssertionError("this machine does not matter")

    monkeypatch.setattr(plan_module, "probe", look)
    job = ("--model", "Qwen/Qwen3-8B", "--data", "qwen-local/sample", "--for", name)
    plan = planned(cli, *job)
    assert (plan["machine"], plan["backend"], plan["device"]) == (name, backend, "gpu")
    assert (plan["dtype"], plan["memory"]["fits"]) == ("bfloat16", fits)
    assert plan["disk_free_bytes"] is None
    head = f"machine     {name}\nmodel       Qwen/Qwen3-8B\nbackend     {backend} on the gpu"
    assert cli("plan", *job).out.startswith(head)


def test_an_engine_that_the_named_machine_has_not_is_refused(cli: Cli) -> None:
    said = cli("plan", "--for", "rtx-3090", "--backend", "mlx")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "--backend mlx: rtx-3090 is planned for --backend cuda\n\nhint: leave --backend out\n"
    )


def test_bitsandbytes_is_taken_for_granted_on_a_named_machine(cli: Cli) -> None:
    job = ("--model", "Qwen/Qwen3-8B", "--data", "qwen-local/sample", "--quantization", "4bit")
    assert planned(cli, *job, "--for", "rtx-3090")["memory"]["fits"]


def test_passes_are_recorded_where_the_card_would_wait_and_the_job_does_not_forbid_it(
    cli: Cli, tmp_path: Path
) -> None:
    """Rows of 128 tokens are 1,024 a step: an A800 computes faster than they are launched."""
    data = ("--data", generated_rows(tmp_path, 50), "--set", "data.max_length=128")
    job = ("--model", "Qwen/Qwen3-0.6B", *data, "--for", "a800")
    plan = planned(cli, *job)
    assert plan["cuda_graphs"] is True
    said = "\n            passes are recorded as CUDA graphs\n"
    assert said in cli("plan", *job).out
    off = planned(cli, *job, "--set", "train.cuda_graphs=false")
    assert off["cuda_graphs"] is False
    assert off["memory"]["cache"] < plan["memory"]["cache"]
    long = ("--set", "data.max_length=2048")
    assert planned(cli, *job, *long)["cuda_graphs"] is False
    assert planned(cli, *job, *long, "--set", "train.cuda_graphs=true")["cuda_graphs"] is True
    mac = (*job[:-1], "m4-pro-24", "--set", "train.cuda_graphs=true")
    assert planned(cli, *mac)["cuda_graphs"] is False


# --- that it is true ---


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["mlx", "cuda"])
def test_train_does_what_the_plan_of_the_same_job_says(cli: Cli, backend: str) -> None:
    """The embedded job, cut to its first 60 rows."""
    job = ("--backend", backend, "--device", "cpu", "--epochs", "2", "--set", "data.limit=60")
    plan = planned(cli, *job)
    said = cli("train", "--json", "--output", "run", *job)
    assert said.code == 0
    run = json.loads(said.out)
    (start,) = read_events(Path("run/metrics.jsonl"), StartEvent)
    for name in ("trainable_parameters", "total_parameters", "backend", "device"):
        assert run[name] == plan[name]
    assert (run["steps"], start.rows) == (plan["optimizer_steps"], plan["rows"])
    assert run["supervised_tokens"] == 2 * plan["supervised_tokens"]
    steps = list(read_events(Path("run/metrics.jsonl"), TrainEvent))
    assert sum(step.tokens or 0 for step in steps) == 2 * plan["tokens"]
    rates = [step.learning_rate for step in steps]
    assert rates.index(max(rates)) == plan["warmup_steps"]
    evaluations = [event.step for event in read_events(Path("run/metrics.jsonl"), EvalEvent)]
    assert len(evaluations) == plan["evaluations"] > 0
    assert evaluations[1] == plan["eval_every"]
    data = json.loads(Path("run/data.json").read_text())
    assert data["train"]["rows"] == plan["rows"]
    assert data["eval"]["rows"] == plan["eval_rows"]
    assert data["sources"][0]["lengths"] == plan["histogram"]


def test_an_output_that_is_taken_is_told_and_refused_only_by_train(cli: Cli) -> None:
    Path("run").mkdir()
    Path("run/metrics.jsonl").touch()
    said = "\noutput      run\n  train refuses it: run is not empty\n"
    assert cli("plan", "--output", "run").out.endswith(said)
    assert planned(cli, "--output", "run")["output_taken"] == "run is not empty"
    assert planned(cli, "--output", "other")["output_taken"] is None


def test_a_dry_run_is_a_plan(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "free_bytes", lambda folder: 10**11)  # as things are used up
    monkeypatch.setattr(preparation, "peak_resident_bytes", lambda: 10**9)
    job = ("--steps", "7", "--output", "run")
    assert cli("train", "--dry-run", *job) == cli("plan", *job)
    assert cli("train", "--dry-run", "--json", *job) == cli("plan", "--json", *job)


DRY: tuple[tuple[str, ...], ...] = (("--dry-run",), ())


@pytest.mark.slow
def test_a_dry_run_of_a_resumed_run_refuses_what_train_refuses(cli: Cli) -> None:
    job = ("--device", "cpu", "--steps", "2", "--set", "data.limit=40", "--output", "run")
    assert cli("train", *job, "--set", "train.save_every=1").code == 0
    assert cli("train", "--resume=run", "--steps", "3", "--dry-run").code == 0
    for changed in (("--lora-rank", "4"), ("--seed", "5")):
        dry, wet = (cli("train", "--resume=run", *changed, *more) for more in DRY)
        assert (dry.code, wet.code) == (2, 2)
        assert dry.err == wet.err.partition("\n")[2]  # which begins with "run: run"
        assert "this run started with" in dry.err
    with locked(Path("run")):
        dry, wet = (cli("train", "--resume=run", *more) for more in DRY)
    assert (dry.code, wet.code) == (3, 3)
    assert dry.err == wet.err.partition("\n")[2]
    Path("run/checkpoints/step-000001/progress.json").write_text("{}")
    for more in DRY:
        said = cli("train", "--resume=1", "--output", "run", *more)
        assert said.code == 1
        assert "run/checkpoints/step-000001: is damaged: progress.json" in said.err


def test_the_lengths_of_all_sources_are_counted(cli: Cli, tmp_path: Path) -> None:
    for name, words in (("a", 1), ("b", 70)):
        line = json.dumps({"prompt": "Say it.", "completion": " a" * words})
        (tmp_path / f"{name}.jsonl").write_text(line + "\n")
    found = planned(cli, "--set", "data.train=[a.jsonl, b.jsonl]", "--set", "data.eval_fraction=0")
    assert found["histogram"] == {"edges": [0, 32, 64, 128], "counts": [1, 0, 1]}


def test_an_output_whose_name_is_too_long_is_reported_by_a_plan(cli: Cli) -> None:
    said = cli("plan", "--json", "--output", "a" * 300)
    assert said.code == 0
    [refusal] = json.loads(said.out)["refusals"]
    assert "File name too long" in refusal


@pytest.mark.slow
def test_a_plan_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    for model in ("qwen-local/tiny", "Qwen/Qwen3-0.6B"):
        for form in ((), ("--json",)):
            assert cli("plan", "--model", model, "--output", "run", *form).code == 0
            assert cli("plan", "--model", model, *form).code == 0
    assert list(tmp_path.iterdir()) == []
    assert not tmp_path.with_name("no-cache").exists()
