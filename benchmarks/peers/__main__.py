"""This project and the tools that people use, side by side, on the same work.

    python -m benchmarks.peers
    python -m benchmarks.peers --only small/movielens --rounds 1 --steps 6 --output -
    python -m benchmarks.peers --only small/code-alpaca --only mlx/code-alpaca
    python -m benchmarks.peers --only small/code-alpaca --python llama-factory=/other/bin/python
    python -m benchmarks.peers --data my-file.json
    python -m benchmarks.peers --device gpu

Each measurement is a process of its own, the tools take turns, and all train on the same rows at
the same step: docs/benchmarks.md says how, and what is not claimed. The result is written after
each comparison. Exit code 1 where one is void, because the tools did not do the same work, or where
one failed; 2 where there is no such device.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import without_gpu
from benchmarks.lengths import WORKLOADS
from benchmarks.peers import compare
from benchmarks.peers.models import NAMES
from benchmarks.peers.turns import SIDES, Comparison, compared, lacking
from benchmarks.peers.work import FIRST, WARM_UP, FailedError
from benchmarks.result import RESULTS, machine, write
from qwen_local.backends.machine import Engine
from qwen_local.backends.probe import probe

STEPS = {"cpu": 12, "gpu": 40}
ENGINES: tuple[Engine, ...] = ("cuda", "mlx")
TORCH = ("ours-torch", "trl", "llama-factory")
MLX = ("ours-mlx", "mlx-lm")


def main() -> None:
    """Measure, write the result, print a table."""
    given = arguments()
    pythons = dict(pair.split("=", 1) for pair in given.python)
    if strange := pythons.keys() - SIDES.keys():
        sys.exit(f"--python: no tool is called {', '.join(strange)}: {', '.join(SIDES)}")
    for tool, python in pythons.items():
        try:
            lacking(python, [])
        except FailedError as error:
            sys.exit(f"--python {tool}: {error}")
    steps = given.steps or STEPS[given.device]
    if steps < FIRST or steps <= WARM_UP:
        sys.exit(f"--steps: at least {max(FIRST, WARM_UP + 1)}")
    chosen = list(comparisons(given.device, given.only, given.data))
    if unknown := set(given.only) - {one.name for one in chosen}:
        known = f"{', '.join(NAMES)} and {', '.join(WORKLOADS)}"
        sys.exit(f"--only {' '.join(sorted(unknown))}: MODEL/WORKLOAD of {known}")
    here = probe()
    mine = {SIDES[tool].backend for one in chosen for tool in one.tools if tool not in pythons}
    for engine in ENGINES:
        if given.device == "gpu" and engine in mine and (lack := without_gpu(here, engine)):
            print(f"{lack}; --device cpu needs none", file=sys.stderr)
            sys.exit(2)
    found: dict[str, Any] = {}
    wrong: list[bool] = []
    result = {
        "command": " ".join(["python -m benchmarks.peers", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(given.device, here=here),
        "rounds": given.rounds,
        "steps": steps,
        "warm_up": WARM_UP,
        "comparisons": found,
    }
    output = given.output or RESULTS / f"peers-{given.device}.json"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for one in chosen:
            try:
                found[one.name] = compared(
                    one, folder, pythons, given.device, rounds=given.rounds, steps=steps
                )
            except FailedError as error:
                found[one.name] = {"failed": str(error)}
            wrong += told(one.name, found[one.name])
            if output != "-":
                write(result, output, folder)
        if output == "-":
            write(result, output, folder)
        else:
            print(compare.table(found))
    sys.exit(any(wrong))


def told(name: str, one: Mapping[str, Any]) -> Iterator[bool]:
    """Say on stderr what came of a comparison; whether each of it is a failure."""
    said = [(False, f"without {tool}: {why}") for tool, why in one.get("skipped", {}).items()]
    said += [(True, f"void: {why}") for why in one.get("void", ())]
    said += [(True, f"failed: {one['failed']}")] if "failed" in one else []
    said += [(False, verdict) for verdict in compare.verdicts(one)]
    for wrong, words in said:
        print(f"{name}: {words}", file=sys.stderr, flush=True)
        yield wrong


def arguments() -> argparse.Namespace:
    """The command line."""
    usual = f"{STEPS['cpu']} on a CPU, {STEPS['gpu']} on a GPU"
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--device", choices=list(STEPS), default="cpu", help="%(default)s")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="MODEL/WORKLOAD",
        help="this comparison, of any model; may be given several times",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every tool; %(default)s")
    parser.add_argument("--steps", type=int, help=f"of a process; {usual}")
    parser.add_argument(
        "--output",
        help="a file, or - for all of it on stdout; benchmarks/results/peers-DEVICE.json",
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="TOOL=PATH",
        help="the interpreter of an environment that has this tool",
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="instead of the made workloads: a JSON list of instruction, input and output",
    )
    return parser.parse_args()


def comparisons(device: str, only: Sequence[str], data: Sequence[Path]) -> Iterator[Comparison]:
    """What is compared on a device.

    Args:
        device: cpu or gpu.
        only: names, which may be none of the usual; empty for the usual.
        data: files in place of the made workloads.
    """
    workloads: list[tuple[str, Path | None]] = [(name, None) for name in WORKLOADS]
    usual: tuple[str, ...] = ("code-alpaca", "movielens")
    if data:
        workloads = [(file.stem, file) for file in data]
        usual = tuple(file.stem for file in data)
    for model in NAMES:
        for workload, file in workloads:
            one = Comparison(model=model, workload=workload, file=file, tools=tools(model, device))
            by_rule = usual_on(device, model) and (
                workload == "long" if model == "Qwen3-8B" and not data else workload in usual
            )
            if one.name in only or (not only and by_rule):
                yield one


def usual_on(device: str, model: str) -> bool:
    """Whether a model is compared on a device without being asked for."""
    if device == "cpu":
        return model in ("small", "mlx")
    return model == "Qwen3-0.6B" if sys.platform == "darwin" else model.startswith("Qwen3-")


def tools(model: str, device: str) -> tuple[str, ...]:
    """Who is compared on a model."""
    if (sys.platform == "darwin" and device == "gpu") or model == "mlx":
        return MLX
    if device == "gpu":
        return (*TORCH, "unsloth")
    return (*TORCH, *MLX) if model == "tiny" else TORCH


if __name__ == "__main__":
    main()
