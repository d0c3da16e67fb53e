"""Whether the first cosine of a process is right: cold, and after `vector_math.call_once`.

    python -m benchmarks.vector_math
    python -m benchmarks.vector_math --times 500 --output -

A process that has computed nothing yet is forked, and the child compares its first `cos` of a table
of angles with its second. On a CPU with several cores and a PyTorch that uses Intel's MKL some
first ones are wrong by 1.5e-4; see `qwen_local/backends/cuda/vector_math.py`. Linux.
"""

from __future__ import annotations

import argparse
import datetime
import os
import struct
import sys
from typing import Any

from benchmarks.result import RESULTS, machine, write

RESULT = RESULTS / "vector_math.json"


def main() -> None:
    """Print or write one JSON object; exit code 1 where a warm process was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vector_math", description="Wrong first cosines, cold and warm."
    )
    parser.add_argument("--times", type=int, default=2500, help="processes of each; %(default)s")
    parser.add_argument(
        "--output",
        default=str(RESULT),
        help="a file, or - for stdout; benchmarks/results/vector_math.json",
    )
    given = parser.parse_args()
    found = {
        "command": f"python -m benchmarks.vector_math --times {given.times}",
        "date": datetime.date.today().isoformat(),
        "machine": machine("cpu"),
        "cold": wrong(given.times, warm=False),
        "warm": wrong(given.times, warm=True),
    }
    write(found, given.output)
    raise SystemExit(found["warm"]["wrong"] > 0)


def wrong(times: int, *, warm: bool) -> dict[str, Any]:
    """In how many of so many processes the first cosine was not the second, and by how much."""
    import numpy as np
    import torch

    from qwen_local.backends.cuda.vector_math import call_once

    angles = torch.from_numpy(np.linspace(0, 150, 147 * 128, dtype=np.float32))
    differences = []
    for _ in range(times):
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            try:
                if warm:
                    call_once()
                first = angles.cos().clone()
                os.write(theirs, struct.pack("d", float((first - angles.cos()).abs().max())))
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:  # whatever happens, nothing of the parent's is done twice
                os._exit(0)
        os.close(theirs)
        told = os.read(ours, 8)
        os.close(ours)
        os.waitpid(child, 0)
        if not told:
            raise SystemExit("a forked process ended without an answer")
        differences.append(struct.unpack("d", told)[0])
    return {"times": times, "wrong": sum(d > 0 for d in differences), "largest": max(differences)}


if __name__ == "__main__":
    main()
