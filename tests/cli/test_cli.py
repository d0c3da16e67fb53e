"""The command line: what is parsed, what is said where, how a command ends, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from qwen_local import __version__
from qwen_local.backends.base import StepResult
from qwen_local.backends.machine import Engine
from qwen_local.cli.options import PRESETS, QUANTIZATIONS
from qwen_local.embedded import tiny_model_path
from qwen_local.job.presets import PRESET_NAMES
from qwen_local.job.schema import Quantization, read_job
from qwen_local.runs.events import EndEvent, TrainEvent, read_events

Cli = Callable[..., Any]

COMMANDS = ("train", "plan", "data", "generate", "chat", "fuse", "demo", "doctor")
TINY = "qwen-local/tiny"


def files_in(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: the content of files, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def process(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m qwen_local ...` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "qwen_local", *args],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# --- help ---

HEAVY = ("torch", "mlx", "transformers", "datasets", "pydantic", "numpy")
WATCHED = """
import sys
sys.argv = ["qwen-local", *sys.argv[1:]]
from qwen_local.cli import main
try:
    main()
finally:
    print("loaded:", *({name.partition(".")[0] for name in sys.modules} & set(HEAVY)))
"""


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_loads_no_framework(command: list[str], tmp_path: Path) -> None:
    program = WATCHED.replace("HEAVY", repr(HEAVY))
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"Usage: {' '.join(['qwen-local', *command])} [OPTIONS]")
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_importing_the_package_loads_no_framework(tmp_path: Path) -> None:
    program = f"import qwen_local, sys; print(set(sys.modules) & set({HEAVY}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True)
    assert done.stdout == b"set()\n"


def test_the_help_has_one_line_per_command_that_is_not_cut(cli: Cli) -> None:
    commands = cli("--help").out.partition("Commands:\n")[2]
    assert commands == (
        "  chat      Chat with a model.\n"
        "  data      Check, show and build training data.\n"
        "  demo      Train, merge and test the embedded model on every engine here.\n"
        "  doctor    Show what is installed, what auto chooses and what is missing.\n"
        "  export    Convert an adapter for PEFT, mlx-lm, llama.cpp or Ollama.\n"
        "  fuse      Merge an adapter into its base model, and test the result.\n"
        "  generate  Answer one prompt, or every row of a file.\n"
        "  plan      Show what JOB would do: counts, steps, data, memory.\n"
        "  train     Train the adapter that JOB describes.\n"
    )


def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    assert cli("--version").out == f"qwen-local, version {__version__}\n"


def test_the_presets_of_the_flag_are_those_of_the_job() -> None:
    assert tuple(PRESETS) == PRESET_NAMES


def test_the_quantizations_of_the_flags_are_those_of_the_job() -> None:
    assert tuple(QUANTIZATIONS) == get_args(Quantization)


# --- bad input: one message, exit code 2, nothing written ---

BAD_INPUT = {
    "an unknown key": (
        {"job.yaml": "train:\n  epochs: 1\n  learning_rat: 1e-4\n"},
        ("job.yaml",),
        "job.yaml:3: train.learning_rat: unknown key\n\nhint: did you mean learning_rate?",
    ),
    "a learning rate that is no number": (
        {"job.yaml": "train: {learning_rate: fast}\n"},
        ("job.yaml",),
        "job.yaml:1: train.learning_rate: expected a number; found 'fast'\n\n"
        "hint: learning_rate: peak learning rate, reached after warm-up; for example 0.0002",
    ),
    "several faults at once": (
        {"job.yaml": "epochs: 3\ntrain: {batch_size: 0}\n"},
        ("job.yaml", "--set", "lora.rnk=4", "--seed", "-1"),
        "job.yaml:1: epochs: unknown key\n\nhint: epochs belongs under train\n\n"
        "job.yaml:2: train.batch_size: must be at least 1; found 0\n\n"
        "hint: batch_size: number of rows per optimizer step; for example 8\n\n"
        "--set lora.rnk=4: unknown key\n\nhint: did you mean lora.rank?\n\n"
        "--seed: must be at least 0; found -1\n\n"
        "hint: seed: seed of the row order, adapter initialization and dropout; for example 0",
    ),
    "a model that is not there": (
        {},
        ("--model", "./nowhere"),
        "./nowhere: expected an existing folder or a hub id; found neither\n\n"
        "hint: a hub id is <owner>/<model>",
    ),
    "a model of another family": (
        {"llama/config.json": '{"model_type": "llama"}'},
        ("--model", "llama"),
        'llama: config.json: model_type: expected qwen2 or qwen3; found "llama"\n\n'
        "hint: use a dense Qwen2.5, Qwen2.5-Coder or Qwen3 model",
    ),
    "a model on the hub while offline": (
        {},
        ("--model", "somebody/something"),
        "somebody/something: not in the cache, and HF_HUB_OFFLINE is set, so the hub was not "
        "contacted\n\n"
        "hint: unset HF_HUB_OFFLINE, or download it once while online: "
        "hf download somebody/something",
    ),
    "rows beyond the model's positions": (
        {},
        ("--max-length", "2049"),
        "data.max_length: expected at most the 2048 positions of qwen-local/tiny; found 2049\n\n"
        "hint: set it to 2048 or less",
    ),
    "more blocks than the model has": (
        {},
        ("--set", "lora.layers=5"),
        "lora.layers: must be at most 4, the model's number of blocks; found 5\n\n"
        "hint: write all, or a number up to 4",
    ),
    "an empty file": (
        {"rows.jsonl": ""},
        ("--data", "rows.jsonl"),
        "rows.jsonl: expected at least one record; found none",
    ),
    "a malformed line": (
        {"rows.jsonl": '{"text": "fine"}\n{"text": \n'},
        ("--data", "rows.jsonl"),
        "rows.jsonl:2: not valid JSON: Expecting value at column 9; found the end\n\n"
        'hint: write one object per line, such as {"prompt": "Hi", "completion": "Hello."}',
    ),
    "an unknown role": (
        {"rows.jsonl": '{"messages": [{"role": "bot", "content": "Hi."}]}\n'},
        ("--data", "rows.jsonl"),
        "rows.jsonl:1: messages[0].role: expected system, user, assistant or tool; found "
        "'bot'\n\n"
        'hint: change "bot" to "assistant"',
    ),
    "data that are not there": (
        {"train.jsonl": ""},
        ("--data", "tran.jsonl"),
        "tran.jsonl: no such file or folder\n\nhint: did you mean train.jsonl?",
    ),
}
"""What is there, the arguments, the whole message."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "said_of_it"),
    [
        ("train.eval_every=1", ""),
        ("data.eval_fraction=0", ""),
        ("train.eval_every=4", "no best adapter yet; the last checkpoint is "
         "run/checkpoints/step-000003\n"),
    ],
)  # fmt: skip
def test_a_run_that_is_stopped_by_hand_says_where_it_stands_and_how_to_go_on(
    rows: str, said_of_it: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_local.backends.cuda.engine import TorchBackend

    real_step = TorchBackend.step

    def stop_at_the_third(self: TorchBackend, *args: Any, **named: Any) -> StepResult:
        if self._steps == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real_step(self, *args, **named)

    monkeypatch.setattr(TorchBackend, "step", stop_at_the_third)
    said = cli("train", "--device", "cpu", "--steps", "4", "--output", "run", "--set", rows)
    assert said.code == 130
    assert said.err.endswith(
        f"stopped by SIGINT after step 3 of 4\n{said_of_it}"
        "to continue: qwen-local train --resume=run\n\nstopped by SIGINT\n"
    )
    assert Path("run/adapter").exists() is not bool(said_of_it)
    monkeypatch.setattr(TorchBackend, "step", real_step)
    said = cli("train", "--resume=run", "--device", "cpu", "--json")
    assert (said.code, json.loads(said.out)["steps"]) == (0, 4)
    asked = ("--adapter", "run/checkpoints/step-000004", "--prompt", "Hi", "--device", "cpu")
    assert cli("generate", *asked).code == 0


def test_an_output_that_is_not_empty_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").touch()
    said = cli("train", "--output", "run")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "--output: run is not empty\n\n"
        "hint: choose another folder with --output, or remove this one\n"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


@pytest.mark.slow
def test_a_model_of_ones_own_is_never_trained_on_the_sample_data_by_mistake(
    cli: Cli, tmp_path: Path
) -> None:
    said = cli("train", "--model", str(tiny_model_path()))
    assert said.code == 2
    assert said.err == (
        f"data.train: expected the data to train {tiny_model_path()} on; it is not given\n\n"
        "hint: pass --data, or write data: {train: ...} into the job; qwen-local/sample is the "
        "sample data\n"
    )
    wanted = ("--data", "qwen-local/sample", "--steps", "1", "--output", "run", "--device", "cpu")
    assert cli("train", "--model", str(tiny_model_path()), *wanted).code == 0


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize(("there", "args", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_gives_one_message_and_exit_code_2_and_writes_nothing(
    command: str,
    there: dict[str, str],
    args: tuple[str, ...],
    message: str,
    cli: Cli,
    tmp_path: Path,
) -> None:
    for name, content in there.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    before = files_in(tmp_path)
    said = cli(command, *args)
    assert said.err == f"{message}\n"
    assert (said.code, said.out) == (2, "")
    assert files_in(tmp_path) == before


@pytest.mark.slow
def test_data_on_the_hub_while_offline_are_refused_by_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = process("train", "--data", "owner/name", cwd=tmp_path / "work", **home)
    assert done.stderr == (
        "owner/name: not here, not in the cache, and HF_HUB_OFFLINE is set, so the Hub was not "
        "contacted\n\n"
        "hint: unset HF_HUB_OFFLINE once, or name a local file\n"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert files_in(tmp_path / "work") == {}


def test_a_flag_of_the_wrong_kind_is_a_matter_of_usage(cli: Cli) -> None:
    said = cli("train", "--learning-rate", "fast")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "Usage: qwen-local train [OPTIONS] [JOB]\n"
        "Try 'qwen-local train --help' for help.\n\n"
        "Error: Invalid value for '--learning-rate': 'fast' is not a valid float.\n"
    )


def test_debug_shows_the_traceback_of_an_error_of_ours_and_the_same_exit_code(cli: Cli) -> None:
    said = cli("--debug", "train", "--set", "lora.layers=5")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("Traceback (most recent call last):\n")
    assert said.err.endswith(
        "\nqwen_local.errors.JobError: lora.layers: must be at most 4, the model's number of "
        "blocks; found 5\n\nhint: write all, or a number up to 4\n\n"
    )


def test_a_bug_keeps_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("qwen_local.training.run.train", broken)
    with pytest.raises(ZeroDivisionError):
        cli("train")


def test_an_interrupted_command_says_so_and_ends_with_130(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen_local.training.run.train", interrupted)
    said = cli("train")
    assert (said.code, said.out, said.err.strip()) == (130, "", "interrupted")


def test_a_run_that_diverges_ends_with_4_and_its_message(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_local.training.diverged import HINT, DivergedError

    def diverged(*_: object, **__: object) -> None:
        raise DivergedError("step 3: too much")

    monkeypatch.setattr("qwen_local.training.run.train", diverged)
    said = cli("train")
    assert (said.code, said.out, said.err) == (4, "", f"step 3: too much\n\nhint: {HINT}\n")


# --- train ---

SHORT = ("train", "--device", "cpu", "--steps", "3", "--set", "data.limit=24")


def test_a_run_leaves_its_files_and_a_job_that_reads_back(
    cli: Cli, engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text("lora: {rank: 4, layers: 2}\ntrain: {schedule: linear}\n")
    args = ("job.yaml", "--backend", engine, "--output", "run", "--set", "train.eval_every=2")
    assert cli(*SHORT, *args, "--quiet").code == 0
    checkpoint = {
        *("COMPLETE.json", "adapter_config.json", "adapter_model.safetensors"),
        *("optimizer.safetensors", "progress.json", "qwen_local.json"),
    }
    assert sorted(path for path, content in files_in(tmp_path / "run").items() if content) == [
        ".lock",
        "adapter/README.md",
        "adapter/mlx/adapter_config.json",
        "adapter/mlx/adapters.safetensors",
        "adapter/mlx/qwen_local.json",
        "adapter/peft/adapter_config.json",
        "adapter/peft/adapter_model.safetensors",
        "adapter/peft/qwen_local.json",
        *(f"checkpoints/step-00000{step}/{name}" for step in (2, 3) for name in sorted(checkpoint)),
        "data.json",
        "environment.json",
        "eval_rows.safetensors",
        "job.yaml",
        "metrics.jsonl",
        "run.log",
    ]
    job = read_job(tmp_path / "run/job.yaml", preset="none").job
    assert (job.lora.rank, job.lora.layers, job.train.schedule) == (4, 2, "linear")
    assert (job.train.steps, job.train.epochs, job.train.batch_size) == (3, None, 8)
    assert job.to_yaml() == (tmp_path / "run/job.yaml").read_text()
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert (environment["backend"], environment["dtype"]) == (engine, "float32")
    data = json.loads((tmp_path / "run/data.json").read_text())
    assert data["sources"][0]["records"] == 24
    events = [event.KIND for event in read_events(tmp_path / "run/metrics.jsonl")]
    assert events[:3] == ["start", "forecast", "eval"] and events[-1] == "end"
    assert [event for event in events if event in ("train", "eval")] == [
        "eval", "train", "train", "eval", "train", "eval",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_job_of_a_run_can_be_run_again(cli: Cli, tmp_path: Path) -> None:
    assert cli(*SHORT, "--output", "one", "--quiet").code == 0
    job = tmp_path / "one/job.yaml"
    assert cli("train", job, "--output", "two", "--device", "cpu", "--quiet").code == 0
    first, second = (
        [event.loss for event in read_events(tmp_path / run / "metrics.jsonl", TrainEvent)]
        for run in ("one", "two")
    )
    assert first == second


@pytest.mark.slow
def test_the_default_output_is_a_new_folder_each_time(cli: Cli, tmp_path: Path) -> None:
    runs = [cli(*SHORT, "--steps", "1", "--quiet").out.strip() for _ in range(2)]
    assert [Path(run).parts[0] for run in runs] == ["runs", "runs"]
    assert [Path(run).parent.name[-2:] for run in runs] == ["-1", "-2"]
    assert all((tmp_path / run / "peft").is_dir() for run in runs)


@pytest.mark.slow
def test_the_result_goes_to_stdout_and_the_talk_to_stderr_and_to_the_log(
    cli: Cli, tmp_path: Path
) -> None:
    said = cli(*SHORT, "--backend", "cuda", "--output", "run")
    assert (said.code, said.out) == (0, "run/adapter\n")
    talk = said.err.splitlines()
    assert talk[:3] == [
        "model: qwen-local/tiny",
        "backend: cuda on the cpu (requested)",
        "dtype: float32 (the CPU is fastest and exact in it)",
    ]
    assert talk[-2:] == [
        "adapter: run/adapter/peft (PEFT), run/adapter/mlx (mlx-lm)",
        "next: qwen-local chat --adapter run",
    ]
    steps = [line for line in talk if line.startswith("step ")]
    assert [line.partition(":")[0] for line in steps] == ["step 1/3", "step 2/3", "step 3/3"]
    logged = [line.split(" ", 2)[2] for line in (tmp_path / "run/run.log").read_text().splitlines()]
    assert logged == [line for line in talk if not line.startswith("step ")]


@pytest.mark.slow
def test_a_quiet_run_says_its_result_alone_and_logs_all_the_same(cli: Cli, tmp_path: Path) -> None:
    said = cli(*SHORT, "--output", "run", "--quiet")
    assert (said.code, said.out, said.err) == (0, "run/adapter\n", "")
    assert " done in " in (tmp_path / "run/run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["mlx", "cuda"])
def test_a_process_of_its_own_is_quiet_too_whatever_its_libraries_would_say(
    backend: str, tmp_path: Path
) -> None:
    done = process(*SHORT, "--backend", backend, "--output", "run", "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "run/adapter\n", "")


# --- JSON ---


@pytest.mark.slow
def test_json_of_train_has_every_key(cli: Cli) -> None:
    said = cli(*SHORT, "--output", "run", "--json")
    found = json.loads(said.out)
    assert found.keys() >= {
        "run",
        "adapter",
        "backend",
        "device",
        "steps",
        "epochs",
        "train_loss",
        "eval_loss",
        "best_step",
        "best_eval_loss",
        "trainable_parameters",
        "total_parameters",
        "supervised_tokens",
        "tokens_per_second",
        "peak_memory_bytes",
        "stopped_because",
    }
    assert (found["run"], found["adapter"]) == ("run", "run/adapter")
    assert (found["steps"], found["stopped_because"]) == (3, "all steps done")
    (end,) = read_events(Path("run/metrics.jsonl"), EndEvent)
    assert end.to_json() == found


def test_json_of_plan_has_every_key(cli: Cli) -> None:
    said = cli("plan", "--json")
    assert said.err == ""
    assert json.loads(said.out).keys() >= {
        "job",
        "trainable_parameters",
        "total_parameters",
        "trainable_percent",
        "histogram",
        "optimizer_steps",
        "warmup_steps",
        "memory",
    }


@pytest.mark.slow
def test_json_of_doctor_names_both_engines(cli: Cli) -> None:
    said = cli("doctor", "--json")
    found = json.loads(said.out)
    assert said.err == ""
    assert found["backends"].keys() == {"mlx", "cuda"}
    assert "cpu" in found["backends"]["mlx"]["devices"]
    assert (found["ready"], found["hub"]) == (True, None)
    assert found["machine"]["packages"]["bitsandbytes"] is not None


def test_doctor_asks_the_hub_only_where_it_is_told_to(cli: Cli) -> None:
    said = cli("doctor", "--hub")
    assert (said.code, said.err) == (0, "")
    assert "\nhub           https://huggingface.co: not contacted, as HF_HUB_OFFLINE is" in said.out
    assert said.out.startswith("system        ")
    assert "\nready" in said.out


# --- generate ---

ASK = ("generate", "--model", TINY, "--device", "cpu", "--max-tokens", "8")


def test_json_of_generate_has_every_key(cli: Cli, engine: Engine) -> None:
    said = cli(*ASK, "--backend", engine, "--prompt", "Hello", "--json")
    found = json.loads(said.out)
    assert (said.code, said.err) == (0, "")
    assert found.keys() >= {"text", "prompt_tokens", "completion_tokens", "finish_reason"}
    assert found["finish_reason"] in ("stop", "length")
    assert found["ended_turn"] is (found["finish_reason"] == "stop")
    assert 0 < found["completion_tokens"] <= 8
    assert cli(*ASK, "--backend", engine, "--prompt", "Hello").out == f"{found['text']}\n"


@pytest.mark.slow
def test_a_prompt_from_stdin_is_the_prompt_without_the_line_end_of_echo(cli: Cli) -> None:
    given = json.loads(cli(*ASK, "--json", "--prompt", "Grüße\n\nan alle").out)
    for stdin in ("Grüße\n\nan alle", "Grüße\n\nan alle\n"):
        read = cli(*ASK, "--json", "--prompt", "-", stdin=stdin.encode())
        assert json.loads(read.out) == given


@pytest.mark.slow
def test_a_system_message_comes_before_the_prompt(cli: Cli) -> None:
    with_system = json.loads(cli(*ASK, "--json", "--prompt", "Hi", "--system", "Be brief.").out)
    without = json.loads(cli(*ASK, "--json", "--prompt", "Hi").out)
    assert with_system["prompt_tokens"] > without["prompt_tokens"]


@pytest.mark.slow
def test_the_adapter_of_a_run_changes_the_answer_and_either_layout_is_found(cli: Cli) -> None:
    train = (*SHORT, "--steps", "12", "--learning-rate", "0.003", "--set", "data.eval_fraction=0")
    assert cli(*train, "--output", "run", "--quiet").code == 0
    question = ("--prompt", "Create a function that doubles the days in a list.")
    bare = cli(*ASK, *question).out
    answers = {
        cli(*ASK, *question, "--adapter", adapter).out
        for adapter in ("run", "run/adapter", "run/adapter/peft", "run/adapter/mlx")
    }
    assert len(answers) == 1 and answers != {bare}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (
            ("--prompt", "-"),
            b"caf\xe9",
            "--prompt -: expected UTF-8; found byte 0xe9 at 3",
        ),
        (
            ("--prompt", "-"),
            b"a\0b",
            "--prompt -: expected text; found a NUL character (character 2)",
        ),
        (
            ("--prompt", "Hi", "--max-tokens", "3000"),
            b"",
            "--max-tokens: 9 prompt tokens and 3000 more exceed the model's 2048 positions\n\n"
            "hint: at most 2039 fit after this prompt",
        ),
        (
            ("--prompt", "Hi", "--adapter", "nowhere"),
            b"",
            "--adapter nowhere: no such folder\n\nhint: pass a run folder or an adapter folder",
        ),
        (
            ("--prompt", "half \udc80 a character"),
            b"",
            "messages[0].content: expected text; found half of a surrogate pair, \\udc80 "
            "(character 6)",
        ),
    ],
    ids=["bytes", "NUL", "too many tokens", "no adapter", "half a character"],
)
def test_a_question_that_cannot_be_asked_is_refused(
    args: tuple[str, ...], stdin: bytes, message: str, cli: Cli
) -> None:
    said = cli(*ASK, *args, stdin=stdin)
    assert (said.code, said.out, said.err) == (2, "", f"{message}\n")


@pytest.mark.slow
def test_a_prompt_beyond_the_positions_of_the_model_is_refused(cli: Cli) -> None:
    said = cli(*ASK, "--prompt", "-", stdin=b"7 " * 3000)
    found = int(said.err.split()[1])
    assert found > 2048
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        f"--prompt: {found} tokens exceed the model's 2048 positions\n\nhint: shorten it\n"
    )


@pytest.mark.slow
def test_an_answer_that_would_not_fit_behind_its_prompt_is_refused(cli: Cli) -> None:
    said = cli(*ASK, "--prompt", "Hi", "--max-tokens", "2048")
    found = int(said.err.split()[1])
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        f"--max-tokens: {found} prompt tokens and 2048 more exceed the model's 2048 positions\n\n"
        f"hint: at most {2048 - found} fit after this prompt\n"
    )


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("run", "run: is a run; expected a job file\n\nhint: to continue it: qwen-local train "
         "--resume=run\n"),
        ("folder", "folder: is a folder; expected a job file\n"),
        ("rows.jsonl", "rows.jsonl: is a file of data; expected a job file (YAML)\n\n"
         "hint: pass --data rows.jsonl\n"),
        ("jop.yaml", "jop.yaml: there is no such job file\n\nhint: did you mean job.yaml?\n"),
        ("none", "none: there is no such job file\n"),
    ],
)  # fmt: skip
def test_what_is_no_job_file_is_named_with_what_was_meant(job: str, said: str, cli: Cli) -> None:
    Path("run").mkdir()
    Path("folder").mkdir()
    for name in ("job.yaml", "run/job.yaml", "rows.jsonl"):
        Path(name).write_text("train: {steps: 1}\n")
    for command in ("train", "plan"):
        found = cli(command, job)
        assert (found.code, found.out, found.err) == (2, "", said)
