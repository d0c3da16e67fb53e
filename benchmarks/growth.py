"""Whether training grows dearer with the number of rows: time per token, and peak memory.

    python -m benchmarks.growth
    python -m benchmarks.growth --rows 1000 10000 --steps 10 --rounds 1 --output -

The embedded model on the torch engine. The files differ in length alone: each is laid out so that
the steps which are counted see the same rows. Every run is a process of its own and the files take
turns. Peak memory is that of the training process, the reading of its file included. Exit code 1
where time or memory differs by more than 10 % between the files.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.compare import seconds
from benchmarks.peers.models import make_model
from benchmarks.peers.orders import placed, reading_order
from benchmarks.peers.turns import run
from benchmarks.peers.work import BATCH_SIZE, WARM_UP, FailedError, Work
from benchmarks.peers.workloads import made_rows
from benchmarks.result import RESULTS, machine, write

RESULT = RESULTS / "growth.json"
WITHIN = 0.10
TOOL = "ours-torch"


def main() -> None:
    """Measure, and print or write one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    sizes = [1_000, 10_000, 100_000]
    usual = " ".join(map(str, sizes))
    parser.add_argument("--rows", type=int, nargs="+", default=sizes, help=f"of the files; {usual}")
    parser.add_argument("--steps", type=int, default=60, help="that are counted; %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every file; %(default)s")
    parser.add_argument(
        "--output",
        default=str(RESULT),
        help="a file, or - to print; benchmarks/results/growth.json",
    )
    given = parser.parse_args()
    steps = WARM_UP + given.steps
    if min(given.rows) < steps * BATCH_SIZE:
        sys.exit(f"--rows: at least {steps * BATCH_SIZE}, so that no row is seen twice")
    with tempfile.TemporaryDirectory() as folder:
        try:
            reports = measure(Path(folder), given.rows, steps, given.rounds)
        except FailedError as error:
            sys.exit(str(error))
    found = figures(reports)
    result = {
        "command": " ".join(["python -m benchmarks.growth", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": machine("cpu"),
        "within": WITHIN,
        **found,
        "reports": {str(rows): taken for rows, taken in reports.items()},
    }
    write(result, given.output)
    print(verdict(found["time_spread"], found["memory_spread"]), file=sys.stderr)
    sys.exit(max(found["time_spread"], found["memory_spread"]) > WITHIN)


def measure(
    folder: Path, sizes: Sequence[int], steps: int, rounds: int
) -> dict[int, list[dict[str, Any]]]:
    """The reports of each number of rows, one of every round."""
    model = make_model("tiny", "float32", folder)
    files = {rows: data_file(folder / f"{rows}.jsonl", rows) for rows in sizes}
    reports: dict[int, list[dict[str, Any]]] = {rows: [] for rows in sizes}
    for number in range(rounds):
        for rows, file in list(files.items())[:: 1 if number % 2 == 0 else -1]:
            scratch = folder / "turn"
            scratch.mkdir()
            work = Work(
                model=str(model),
                data=str(file),
                folder=str(scratch),
                device="cpu",
                dtype="float32",
                steps=steps,
            )
            report = run(TOOL, work, sys.executable)
            reports[rows].append(report)
            shutil.rmtree(scratch)
            peak = report["peak_memory_bytes"] / 2**20
            said = f"round {number + 1}, {rows:,} rows: {seconds(report):.2f} s, {peak:,.0f} MiB"
            print(said, file=sys.stderr, flush=True)
    return reports


def data_file(file: Path, rows: int) -> Path:
    """So many rows, of which the first steps see the same, however many there are."""
    made = made_rows("code-alpaca", rows)
    order = reading_order(TOOL, rows, batch_size=BATCH_SIZE, seed=0)
    with file.open("w", encoding="utf-8") as out:
        for row in placed(made, order):
            out.write(json.dumps(row) + "\n")
    return file


def figures(reports: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians of each number of rows, and how far they lie apart.

    Args:
        reports: by number of rows, of the same rounds.

    Returns:
        `by_rows`; `time_spread` and `memory_spread`, the share by which the largest median exceeds
        the least.
    """
    by_rows = {}
    for rows, taken in reports.items():
        tokens = sum(taken[0]["tokens"][WARM_UP:])
        by_rows[str(rows)] = {
            "microseconds_per_token": statistics.median(1e6 * seconds(r) / tokens for r in taken),
            "peak_memory_bytes": statistics.median(r["peak_memory_bytes"] for r in taken),
        }
    spreads = []
    for name in ("microseconds_per_token", "peak_memory_bytes"):
        values = [one[name] for one in by_rows.values()]
        spreads.append(max(values) / min(values) - 1)
    return {"by_rows": by_rows, "time_spread": spreads[0], "memory_spread": spreads[1]}


def verdict(time: float, memory: float) -> str:
    """Both spreads in a line, and what is asked of them.

    >>> verdict(0.1423, 0.0087)
    'time per token 14.2 % apart, peak memory 0.9 % apart: at most 10 % is asked'
    """
    found = f"time per token {100 * time:.1f} % apart, peak memory {100 * memory:.1f} % apart"
    return f"{found}: at most {100 * WITHIN:.0f} % is asked"


if __name__ == "__main__":
    main()
