"""How long `qwen-local <command> --help` takes, against a bare import of click and pydantic.

    python -m benchmarks.help_time

The peer is what any command line with our two foundations pays. The two are run alternately, so
that what else happens on the machine meets both; the medians are compared. Help must take at most
twice the peer's time.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time

PEER = ("-c", "import click, pydantic")
COMMANDS = ("", "train", "plan", "generate", "demo", "doctor")
RUNS = 5
BOUND = 2.0


def seconds(*arguments: str) -> float:
    """Wall time of one run of this Python."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(command: str) -> dict[str, float]:
    """Median seconds of the peer and of the help of a command, and their ratio."""
    ours = ("-m", "qwen_local", *command.split(), "--help")
    for arguments in (PEER, ours):  # the first run also compiles
        seconds(*arguments)
    pairs = [(seconds(*PEER), seconds(*ours)) for _ in range(RUNS)]
    peer, help_ = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"peer": round(peer, 3), "help": round(help_, 3), "ratio": round(help_ / peer, 2)}


def main() -> None:
    """Print one JSON object; exit code 1 where help is too slow."""
    measured = {f"qwen-local {command}".strip(): measure(command) for command in COMMANDS}
    worst = max(figures["ratio"] for figures in measured.values())
    print(
        json.dumps(
            {
                "command": "python -m benchmarks.help_time",
                "peer": f"python {PEER[0]} {PEER[1]!r}",
                "machine": platform.platform(),
                "python": platform.python_version(),
                "runs": RUNS,
                "seconds": measured,
                "largest_ratio": worst,
            },
            indent=2,
        )
    )
    sys.exit(worst > BOUND)


if __name__ == "__main__":
    main()
