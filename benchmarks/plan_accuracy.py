"""Peak memory as `plan` foretells it, against what `train` of the same job then needs.

    python -m benchmarks.plan_accuracy
    python -m benchmarks.plan_accuracy --only tiny --output -
    python -m benchmarks.plan_accuracy --device gpu

On a CPU: the tiny model, and one with Qwen3's vocabulary (hidden 512, 8 layers, random weights), on
both engines, in several settings. On an NVIDIA GPU: random weights in the shapes of Qwen3-0.6B and
1.7B. Every plan and every run is a process of its own, because the peak is the process's. A ratio
is what was needed to what was foretold: within 20 % on a CPU, 15 % on a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.models import make_model
from benchmarks.result import RESULTS, machine, write

WITHIN = {"cpu": 0.20, "gpu": 0.15}

SETTINGS: dict[str, tuple[str, ...]] = {
    "dropout 0": ("lora.dropout=0.0",),
    "dropout 0.05": ("lora.dropout=0.05",),
    "checkpointing": ("lora.dropout=0.05", "train.gradient_checkpointing=true"),
    "4bit": ("lora.dropout=0.0", "model.quantization=4bit"),
}
STEPS = {"tiny": 20, "small": 4, "Qwen3-0.6B": 10, "Qwen3-1.7B": 10}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One job."""

    model: str
    backend: str
    device: str
    setting: str


def main() -> None:
    """Print or write one JSON object; exit code 1 where a plan is off by more than its bound."""
    parser = argparse.ArgumentParser(description="Foretold against measured peak memory.")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--only", choices=list(STEPS), help="one model")
    parser.add_argument("--output", help="a file, or - for stdout")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(case, Path(folder)) for case in cases(given.device, given.only)]
    result = {
        "command": "python -m benchmarks.plan_accuracy --device " + given.device,
        "date": datetime.date.today().isoformat(),
        "machine": machine(given.device),
        "within": WITHIN[given.device],
        "furthest": max((abs(one["ratio"] - 1) for one in found), default=0.0),
        "cases": found,
    }
    write(result, given.output or RESULTS / f"plan_accuracy-{given.device}.json")
    sys.exit(result["furthest"] > WITHIN[given.device])


def cases(device: str, only: str | None) -> Iterator[Case]:
    """What is measured on a device, of one model or all."""
    models = ("tiny", "small") if device == "cpu" else ("Qwen3-0.6B", "Qwen3-1.7B")
    for model in models:
        for backend in ("cuda", "mlx") if device == "cpu" else ("cuda",):
            for setting in SETTINGS:
                if only in (None, model):
                    yield Case(model=model, backend=backend, device=device, setting=setting)


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Foretold and measured bytes of a case."""
    tiny = case.model == "tiny"
    model = "qwen-local/tiny" if tiny else str(make_model(case.model, "bfloat16", folder))
    data = "qwen-local/sample" if tiny else str(made_rows(folder))
    settings = [word for pair in SETTINGS[case.setting] for word in ("--set", pair)]
    job = [
        *("--model", model, "--data", data, "--backend", case.backend, "--device", case.device),
        *("--steps", str(STEPS[case.model]), *settings),
    ]
    foretold = command("plan", *job)["memory"]
    output = folder / "run"
    needed = command("train", "--quiet", "--output", str(output), *job)["peak_memory_bytes"]
    shutil.rmtree(output)
    found = {
        "model": case.model,
        "backend": case.backend,
        "setting": case.setting,
        "foretold_bytes": foretold["peak"],
        "measured_bytes": needed,
        "ratio": round(needed / foretold["peak"], 3),
    }
    print(json.dumps(found), file=sys.stderr, flush=True)
    return {**found, "foretold": {name: foretold[name] for name in PARTS}}


PARTS = ("libraries", "weights", "loading", "adapter", "optimizer", "activations", "head", "cache")


def command(name: str, *arguments: str) -> dict[str, Any]:
    """What a command says, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "qwen_local", name, "--json", *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def made_rows(folder: Path) -> Path:
    """60 conversations of very different lengths."""
    file, draw = folder / "rows.jsonl", random.Random(0)
    words = ("the", "red", "house", "of", "small", "river", "runs", "over", "light", "and", "tree")
    with file.open("w", encoding="utf-8") as out:
        for _ in range(60):
            count = draw.randint(10, 60)
            prompt, answer = (" ".join(draw.choices(words, k=n)) for n in (count // 2, count))
            out.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")
    return file


if __name__ == "__main__":
    main()
