"""Training killed at every file operation and gone on with by --resume, against the unbroken run.

    python -m benchmarks.reliability
    python -m benchmarks.reliability --engine mlx --sample 6 --output -

The tiny model trains for a few steps on the CPU, on each engine, with dropout and a checkpoint at
every step. For every file operation below the run's folder the same run is begun once more and
killed right before it; for every write it is killed half way through as well. `train --resume`
then goes on, or `train` where there is no run yet. The final adapter, both moments and the metrics
must be those of the unbroken run, bit for bit; seconds and memory aside.

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
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.faults import Faults, Operation
from benchmarks.result import RESULTS, machine, write

ENGINES = {"cuda": ("torch", "peft", "transformers"), "mlx": ("mlx", "mlx-lm")}
"""With the packages whose versions count; `cuda` is PyTorch, here on the CPU."""
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
"""16 rows to train on: three steps are an epoch, and the fourth begins another."""
MEASURED = {"seconds", "evaluation_seconds", "peak_memory_bytes", "tokens_per_second", "run"}
"""What may differ, and the run's own folder."""
COMPARED_EVENTS = ("train", "eval", "warning", "end")
"""Others tell of checkpoints and resumptions, which a killed run has more of."""
KILLED = -9
RESULT = RESULTS / "reliability.json"


def main() -> None:
    """Print or write one JSON object; exit code 1 where a resumed run differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", choices=ENGINES, help="only this one")
    parser.add_argument("--sample", type=int, help="only so many points, evenly spread")
    parser.add_argument("--output", default=str(RESULT), help="a file, or - to print")
    given = parser.parse_args()
    engines = (given.engine,) if given.engine else tuple(ENGINES)
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    if given.engine is None:  # each in a process of its own: the two share no memory
        results = dict(zip(engines, map(in_own_process, engines, [given.sample] * 2), strict=True))
    else:
        results = {given.engine: try_all(given.engine, given.sample)}
    report = {
        "command": "python -m benchmarks.reliability",
        "sample": given.sample,
        "date": f"{datetime.date.today():%Y-%m-%d}",
        "machine": machine("cpu", ["qwen-local", *(n for e in engines for n in ENGINES[e])]),
        "job": JOB,
        "engines": results,
    }
    write(report, given.output)
    sys.exit(any(result["failures"] for result in results.values()))


def in_own_process(engine: str, sample: int | None) -> dict[str, Any]:
    """What `try_all` gives."""
    command = [sys.executable, "-m", "benchmarks.reliability", "--engine", engine, "--output", "-"]
    command += [] if sample is None else ["--sample", str(sample)]
    asked = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    result: dict[str, Any] = json.loads(asked.stdout)["engines"][engine]
    return result


def try_all(engine: str, sample: int | None) -> dict[str, Any]:
    """Kill the run of an engine at every point, or at some, and go on."""
    if sys.platform == "linux":
        load(engine)
    began = time.monotonic()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        unbroken, operations = first_run(engine, folder)
        points = list(evenly(list(points_of(operations)), sample))
        for number, (at, fault) in enumerate(points):
            problem = try_point(engine, folder / str(number), unbroken, at, fault)
            if problem is not None:
                failures.append(f"{fault} {at} of {len(operations)}, {operations[at]}: {problem}")
                print(failures[-1], file=sys.stderr)
    return {
        "operations": len(operations),
        "writes": sum(operation.name == "write" for operation in operations),
        "points": len(points),
        "failures": failures,
        "seconds": round(time.monotonic() - began),
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


def first_run(engine: str, folder: Path) -> tuple[dict[str, Any], list[Operation]]:
    """What the unbroken run leaves, and its file operations."""
    run, listed = folder / "unbroken", folder / "operations.json"

    def watched() -> int:
        with Faults(root=run) as faults:
            code = command_line(engine, run)
        listed.write_text(json.dumps([(o.name, o.path, o.source) for o in faults.operations]))
        return code

    code = in_child(watched, folder / "unbroken.log")
    assert code == 0, (folder / "unbroken.log").read_text("utf-8")
    operations = [Operation(*each) for each in json.loads(listed.read_text("utf-8"))]
    return left_by(run), operations


def points_of(operations: Sequence[Operation]) -> Iterator[tuple[int, str]]:
    """(operation, fault) of everything to try."""
    for at, operation in enumerate(operations):
        yield at, "kill before"
        if operation.name == "write":
            yield at, "torn write"


def evenly(points: Sequence[tuple[int, str]], sample: int | None) -> Iterator[tuple[int, str]]:
    """All, or so many of them, the same at every time."""
    count = len(points) if sample is None else sample
    yield from (points[(2 * i + 1) * len(points) // (2 * count)] for i in range(count))


def try_point(
    engine: str, folder: Path, unbroken: dict[str, Any], at: int, fault: str
) -> str | None:
    """Kill a run, go on with it, compare; what is wrong, or None."""
    folder.mkdir()
    run, said = folder / "run", folder / "said.log"

    def killed() -> int:
        with Faults(root=run, at=at, fault=fault):
            return command_line(engine, run)

    code = in_child(killed, said)
    if code != KILLED:
        return f"not killed: it ended {code}"
    resume = ("--resume",) if (run / "job.yaml").exists() else ()
    code = in_child(lambda: command_line(engine, run, *resume), said)
    if code != 0:
        return f"going on ended {code}: {said.read_text('utf-8')}"
    left = left_by(run)
    differing = [name for name in unbroken if left.get(name) != unbroken[name]]
    differing += left.keys() - unbroken.keys()
    if differing:
        return f"differs in {', '.join(differing)}"
    shutil.rmtree(folder)
    return None


def command_line(engine: str, run: Path, *more: str) -> int:
    """`qwen-local train` in this process; its exit code."""
    from qwen_local.cli import main as qwen_local

    sets = [word for setting in JOB for word in ("--set", setting)]
    backend = ("--backend", engine, "--device", "cpu")
    sys.argv = ["qwen-local", "train", *backend, *sets, "--output", str(run), "--quiet", *more]
    try:
        qwen_local()
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code
    raise AssertionError("the command line ends by an exit code")


def in_child(do: Callable[[], int], said: Path) -> int:
    """The exit code of a fork that does this; what it says goes to a file."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(out, 1)
            os.dup2(out, 2)
            code = do()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def left_by(run: Path) -> dict[str, Any]:
    """What is compared: files by path, as bytes; JSON and events without what is measured."""
    left: dict[str, Any] = {}
    for path in sorted([*run.glob("checkpoints/**/*"), *run.glob("adapter/**/*")]):
        name = str(path.relative_to(run))
        if path.name == "COMPLETE.json":  # sizes and hashes of the others
            left[name] = None
        elif path.name == "progress.json":
            left[name] = without_measured(json.loads(path.read_text("utf-8")), run)
        elif path.name == "README.md":  # its job has the name of the run
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
    """JSON without what no two runs share, every mention of the run's folder made the same."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in MEASURED}
        return {key: without_measured(item, run) for key, item in kept.items()}
    if isinstance(value, list):
        return [without_measured(item, run) for item in value]
    return value.replace(str(run), "RUN") if isinstance(value, str) else value


if __name__ == "__main__":
    main()
