"""Steps of a LoRA job on the card that computes nothing: what each costs in launches and host time.

    python -m tests.fake_gpu.step FOLDER '{"size": "0.6B", "workload": "movielens", "batch": 8}'

It runs on the card (`card.environment`) and prints JSON. Other keys: `dropout`, `rank`, and fields
of `Setup` such as `quantization`, `gradient_checkpointing`, `dtype` and `micro_batch_tokens`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.made_rows import made_rows
from qwen_local.backends.base import Backend, Setup
from qwen_local.backends.cost import estimate_memory
from qwen_local.backends.memory import Memory, Workload
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import fetch, find_model
from qwen_local.rows.rows import Rows
from tests.fake_gpu import card
from tests.fake_gpu.models import zero_model

WARM, MEASURED = 3, 5
"""Steps before those that count, unless `warm` is given, and those that count."""


def main() -> None:
    """Run the job that the command line gives."""
    folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    print(json.dumps(measure(folder, **given)))


def measure(
    folder: Path,
    *,
    size: str = "0.6B",
    workload: str = "movielens",
    batch: int = 8,
    rank: int = 16,
    dropout: float = 0.0,
    warm: int = WARM,
    names: bool = False,
    **setup: Any,
) -> dict[str, Any]:
    """Return counts for each step, host CPU milliseconds (median), peaks, and the plan's estimate.

    `planned` is what `plan` estimates for the rows of the largest step, in bytes; `ratio` is what
    was allocated, relative to that.
    """
    import torch

    model = fetch(find_model(str(zero_model(size, folder))))
    lora = LoraSpec(rank=rank, alpha=2 * rank, dropout=dropout)
    asked = Setup(
        **{
            "model": model,
            "lora": lora,
            "device": "gpu",
            "dtype": "bfloat16",
            "max_grad_norm": 1.0,
            "micro_batch_tokens": 16_384,
            **setup,
        }
    )
    engine = open_backend(Choice("cuda", "gpu", "the card"), asked)
    rows = made_rows(workload, batch * (warm + MEASURED), np.random.default_rng(0), vocabulary=2000)
    milliseconds, tokens = [], 0
    parts = [rows.take(range(start, start + batch)) for start in range(0, len(rows), batch)]
    for number, part in enumerate(parts):
        if number == warm:
            card.reset()
        started = time.process_time()
        engine.step(part, lr=1e-4, tokens=part.supervised)
        if number >= warm:
            milliseconds.append(1000 * (time.process_time() - started))
            tokens += part.tokens
    counts = card.counts()
    allocated = torch.cuda.max_memory_allocated()
    planned = estimated(asked, engine, max(parts, key=lambda part: part.tokens))
    found: dict[str, Any] = {
        "tokens": tokens // MEASURED,
        "launches": counts.total / MEASURED,
        "kernels": counts.launches / MEASURED,
        "products": counts.products / MEASURED,
        "replays": counts.replays / MEASURED,
        "syncs": counts.syncs / MEASURED,
        "allocations": counts.allocations / MEASURED,
        "host_ms": round(statistics.median(milliseconds), 1),
        "allocated": allocated,
        "planned": planned.peak,
        "ratio": round(allocated / planned.peak, 3),
        "reserved": torch.cuda.max_memory_reserved(),
        "micro_batch_tokens": engine.micro_batch_tokens,
    }
    if names:
        found["names"] = _by_name(folder)
    return found


def estimated(setup: Setup, engine: Backend, rows: Rows) -> Memory:
    """Return what `plan` estimates for steps on these rows.

    Of a whole data set it takes the longest rows together, which a step has by chance only.
    """
    workload = Workload(
        engine="cuda",
        trainable=sum(array.size for array in engine.adapter().values()),
        lengths_R=rows.lengths_R,
        eval_tokens=0,
        supervised=rows.supervised / rows.tokens,
        batch_size=len(rows),
        steps=1,
        libraries=0,
        available=0,
    )
    return estimate_memory(setup, workload)


def _by_name(folder: Path) -> dict[str, float]:
    """Return launches a step of the kernels that are launched most, by readable name."""
    counted = card.kernels(folder / "kernels.txt").most_common(60)
    text = "\n".join(name for name, _ in counted)
    readable = subprocess.run(["c++filt"], input=text, text=True, capture_output=True, check=True)
    names = readable.stdout.splitlines()
    return {name[:160]: number / MEASURED for name, (_, number) in zip(names, counted, strict=True)}


if __name__ == "__main__":
    main()
