"""Training killed and resumed, compared with the unbroken run.

    python -m benchmarks.reliability
    python -m benchmarks.reliability --every-step
    python -m benchmarks.reliability --engine mlx --sample 6 --output -

The tiny model trains for a few steps on the CPU, on each engine, with dropout and a checkpoint at
every step. For every file operation below the run's folder the same run is started once more and
killed right before it; for every write it is also killed half way through. `train --resume`
then continues, or `train` where there is no run yet. The final adapter, both moments and the
metrics must be those of the unbroken run, bit for bit; seconds and memory aside.

`--every-step` kills once after each checkpoint of a run of 40 steps instead, on random-weight
models of `SHAPES`: there the kernels of a matrix product depend on how arrays are aligned, unless
they are kept from it (see qwen_local/backends/mlx/blas.py).

Where memory is shared by fork (Linux), an engine is loaded once and every run is a fork of that
process; elsewhere a fork of a process that has loaded a framework is not safe, and every run loads
its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.faults import Faults, Operation
from benchmarks.result import RESULTS, machine, write

ENGINES = {"cuda": ("torch", "peft", "transformers"), "mlx": ("mlx", "mlx-lm")}
"""Packages whose versions matter, by engine; `cuda` is PyTorch, here on the CPU."""
JOB = (
    "data.limit=20",
    "data.eval_fraction=0.2",
    "lora.targets=[q_proj, v_proj]",
    "lora.layers=1",
    "lora.dropout=0.1",
    "train.steps=4",
    "train.batch_size=6",
    "train.eval_every=2",
    "train.save_every=1",
    "train.keep=1",
)
"""16 rows to train on: three steps are an epoch, and the fourth starts another."""
STEPS = 40
EVERY_STEP_JOB = (
    "data.train=qwen-local/sample",
    "data.limit=20",
    "data.eval_fraction=0.2",
    "lora.rank=8",
    "lora.dropout=0.1",
    "model.dtype=float32",
    "train.learning_rate=1e-3",
    f"train.steps={STEPS}",
    "train.batch_size=2",
    "train.eval_every=20",
    "train.early_stopping=null",
    "train.save_every=1",
    "train.keep=1",
)
"""Job of `--every-step`: LoRA on every linear layer."""
MEASURED = {"seconds", "evaluation_seconds", "peak_memory_bytes", "tokens_per_second", "run"}
"""Keys that may differ, and the run's own folder."""
COMPARED_EVENTS = ("train", "eval", "warning", "end")
"""The other events report checkpoints and resumptions, of which a killed run has more."""
KILLED = -9
RESULT = RESULTS / "reliability.json"
EVERY_STEP_RESULT = RESULTS / "resume_every_step.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Shape of a random-weight Qwen3 with the tokenizer of the tiny model."""

    hidden: int
    layers: int
    vocabulary: int
    tied: bool

    def __str__(self) -> str:
        tied = "tied" if self.tied else "untied"
        return f"hidden {self.hidden}, {self.layers} layers, vocabulary {self.vocabulary}, {tied}"


SHAPES = (
    Shape(hidden=192, layers=3, vocabulary=9000, tied=False),
    Shape(hidden=128, layers=2, vocabulary=4000, tied=True),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One job on one engine."""

    engine: str
    job: Sequence[str] = JOB
    model: Path | None = None
    """None for the tiny model."""


def main() -> None:
    """Print or write one JSON object; exit code 1 where a resumed run differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", choices=ENGINES, help="only this one")
    parser.add_argument("--sample", type=int, help="only so many points, evenly spread")
    parser.add_argument("--every-step", action="store_true", help="kill after every checkpoint")
    parser.add_argument("--output", help="a file, or - to print")
    given = parser.parse_args()
    engines = (given.engine,) if given.engine else tuple(ENGINES)
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    mode = ("--every-step",) if given.every_step else ()
    if given.engine is None:  # each in a process of its own: the two share no memory
        results = {engine: in_own_process(engine, given.sample, mode) for engine in engines}
        failed = any(map(has_failures, results.values()))
    else:
        tried = try_every_step if given.every_step else try_all
        results = {given.engine: tried(given.engine, given.sample)}
        failed = has_failures(results[given.engine])
    report = {
        "command": " ".join(("python -m benchmarks.reliability", *mode)),
        "sample": given.sample,
        "date": f"{datetime.date.today():%Y-%m-%d}",
        "machine": machine("cpu", ["qwen-local", *(n for e in engines for n in ENGINES[e])]),
        "job": EVERY_STEP_JOB if given.every_step else JOB,
        "engines": results,
    }
    write(report, given.output or (EVERY_STEP_RESULT if given.every_step else RESULT))
    sys.exit(failed)


def has_failures(result: dict[str, Any]) -> bool:
    """True if a run differs, in what `try_all` or `try_every_step` returns."""
    return any(each["failures"] for each in result.get("shapes", [result]))


def in_own_process(engine: str, sample: int | None, mode: Sequence[str]) -> dict[str, Any]:
    """Return the result of one engine, computed by a child process."""
    command = [sys.executable, "-m", "benchmarks.reliability", "--engine", engine, "--output", "-"]
    command += mode
    command += [] if sample is None else ["--sample", str(sample)]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    result: dict[str, Any] = json.loads(child.stdout)["engines"][engine]
    return result


def try_all(engine: str, sample: int | None) -> dict[str, Any]:
    """Kill the run of an engine at every point, or at some, and resume it."""
    if sys.platform == "linux":
        load(engine)
    return try_points(Case(engine=engine), points_of, sample)


def try_every_step(engine: str, sample: int | None) -> dict[str, Any]:
    """Kill the run of an engine after every checkpoint but the last, for each shape."""
    if sys.platform == "linux":
        load(engine)
    shapes = []
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as scratch:
            # In a child: torch computes here, and would start threads.
            code = in_child(partial(save_model, Path(scratch), shape), Path(scratch, "made.log"))
            assert code == 0, Path(scratch, "made.log").read_text("utf-8")
            case = Case(engine=engine, job=EVERY_STEP_JOB, model=Path(scratch))
            result = try_points(case, checkpoints_of, sample)
        print(f"{engine}, {shape}: {result['equal']} of {result['points']} equal", file=sys.stderr)
        shapes.append({"shape": str(shape), **result})
    return {"shapes": shapes}


def save_model(folder: Path, shape: Shape) -> int:
    """Save a random-weight model; return the exit code."""
    import torch
    import transformers

    from qwen_local.embedded import tiny_model_path

    torch.manual_seed(7)
    config = transformers.Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=3 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tiny_model_path() / name, folder)
    return 0


def try_points(
    case: Case,
    list_points: Callable[[Sequence[Operation]], Iterator[tuple[int, str]]],
    sample: int | None,
) -> dict[str, Any]:
    """Kill a run at every listed point, or at some, resume it and count the equal ones."""
    started = time.monotonic()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        unbroken, operations = first_run(case, folder)
        points = list(evenly(list(list_points(operations)), sample))
        for number, (at, fault) in enumerate(points):
            problem = try_point(case, folder / str(number), unbroken, at, fault)
            if problem is not None:
                failures.append(f"{fault} {at} of {len(operations)}, {operations[at]}: {problem}")
                print(failures[-1], file=sys.stderr)
    return {
        "operations": len(operations),
        "writes": sum(operation.name == "write" for operation in operations),
        "points": len(points),
        "equal": len(points) - len(failures),
        "failures": failures,
        "seconds": round(time.monotonic() - started),
    }


def load(engine: str) -> None:
    """Import what the engine needs, and compute nothing, which would start threads."""
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # Arrow's allocator has one
    import_module("qwen_local.cli")
    import_module("qwen_local.training.run")
    import_module(f"qwen_local.backends.{engine}.engine")
    import_module(
        "mlx_lm.models.qwen3" if engine == "mlx" else "transformers.models.qwen3.modeling_qwen3"
    )
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"a process of {threads} threads cannot be forked"


def first_run(case: Case, folder: Path) -> tuple[dict[str, Any], list[Operation]]:
    """Return the files and events of the unbroken run, and its file operations."""
    run, listed = folder / "unbroken", folder / "operations.json"

    def watched() -> int:
        with Faults(root=run) as faults:
            code = command_line(case, run)
        listed.write_text(json.dumps([(o.name, o.path, o.source) for o in faults.operations]))
        return code

    code = in_child(watched, folder / "unbroken.log")
    assert code == 0, (folder / "unbroken.log").read_text("utf-8")
    operations = [Operation(*each) for each in json.loads(listed.read_text("utf-8"))]
    return left_by(run), operations


def points_of(operations: Sequence[Operation]) -> Iterator[tuple[int, str]]:
    """Yield every (operation, fault) to try."""
    for at, operation in enumerate(operations):
        yield at, "kill before"
        if operation.name == "write":
            yield at, "torn write"


def checkpoints_of(operations: Sequence[Operation]) -> Iterator[tuple[int, str]]:
    """Yield the (operation, fault) that leaves each checkpoint but the last as the newest."""
    last = f"step-{STEPS:06d}"
    for at, operation in enumerate(operations):
        name = Path(operation.path).name
        if operation.source is not None and name.startswith("step-") and name != last:
            yield at, "kill after"


def evenly(points: Sequence[tuple[int, str]], sample: int | None) -> Iterator[tuple[int, str]]:
    """Yield all points, or `sample` of them; the same ones in every call."""
    count = len(points) if sample is None else sample
    yield from (points[(2 * i + 1) * len(points) // (2 * count)] for i in range(count))


def try_point(
    case: Case, folder: Path, unbroken: dict[str, Any], at: int, fault: str
) -> str | None:
    """Kill a run, resume it, compare; return the difference, or None."""
    folder.mkdir()
    run, log = folder / "run", folder / "output.log"

    def killed() -> int:
        with Faults(root=run, at=at, fault=fault):
            return command_line(case, run)

    code = in_child(killed, log)
    if code != KILLED:
        return f"not killed: it ended {code}"
    resume = ("--resume",) if (run / "job.yaml").exists() else ()
    code = in_child(lambda: command_line(case, run, *resume), log)
    if code != 0:
        return f"the resumed run ended {code}: {log.read_text('utf-8')}"
    left = left_by(run)
    differing = [name for name in unbroken if left.get(name) != unbroken[name]]
    differing += left.keys() - unbroken.keys()
    if differing:
        return f"differs in {', '.join(differing)}"
    shutil.rmtree(folder)
    return None


def command_line(case: Case, run: Path, *more: str) -> int:
    """Run `qwen-local train` in this process; return its exit code."""
    from qwen_local.cli import main as qwen_local

    sets = [word for setting in case.job for word in ("--set", setting)]
    where = ["--backend", case.engine, "--device", "cpu", "--output", str(run)]
    where += [] if case.model is None else ["--model", str(case.model)]
    sys.argv = ["qwen-local", "train", *where, *sets, "--quiet", *more]
    try:
        qwen_local()
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code
    raise AssertionError("the command line ends by an exit code")


def in_child(do: Callable[[], int], log: Path) -> int:
    """Call `do` in a fork; return its exit code. Its output goes to a file."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(out, 1)
            os.dup2(out, 2)
            code = do()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def left_by(run: Path) -> dict[str, Any]:
    """Return what is compared: files by path, as bytes; JSON and events without measurements."""
    left: dict[str, Any] = {}
    for path in sorted([*run.glob("checkpoints/**/*"), *run.glob("adapter/**/*")]):
        name = str(path.relative_to(run))
        if path.name == "COMPLETE.json":  # sizes and hashes of the other files
            left[name] = None
        elif path.name == "progress.json":
            left[name] = without_measured(json.loads(path.read_text("utf-8")), run)
        elif path.name == "README.md":  # its job contains the name of the run
            text = path.read_text("utf-8")
            left[name] = text.replace(f"output: {run.name}\n", "output: RUN\n")
        elif path.is_file():
            left[name] = path.read_bytes()
        else:
            left[name] = "folder"
    left["eval_rows.safetensors"] = (run / "eval_rows.safetensors").read_bytes()
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    left["metrics.jsonl"] = [
        without_measured(event, run)
        for event in map(json.loads, lines)
        if event["event"] in COMPARED_EVENTS
    ]
    return left


def without_measured(value: Any, run: Path) -> Any:
    """Return JSON without measurements, every mention of the run's folder replaced by RUN."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in MEASURED}
        return {key: without_measured(item, run) for key, item in kept.items()}
    if isinstance(value, list):
        return [without_measured(item, run) for item in value]
    return value.replace(str(run), "RUN") if isinstance(value, str) else value


if __name__ == "__main__":
    main()
