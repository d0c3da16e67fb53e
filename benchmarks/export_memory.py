"""Peak memory and time of `fuse` and `export` on a model in the shape of a real one.

    python -m benchmarks.export_memory
    python -m benchmarks.export_memory --model Qwen2.5-7B --only fuse-cuda --output -

The model has random weights in bfloat16, and so has the adapter (rank 16 on every linear layer).
Every command is a process of its own; its peak is the resident memory that Linux saw (VmHWM),
pages of mapped files among them. The promise: below 3 GB for the 1.5B shape, 8 GB for the 7B one.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import RESULTS, machine, write

MODELS = {"Qwen2.5-1.5B": 3.0, "Qwen2.5-7B": 8.0}
"""Largest peak in GB."""
COMMANDS = {
    "fuse-cuda": ("fuse", "--backend", "cuda"),
    "fuse-mlx": ("fuse", "--backend", "mlx"),
    "gguf-f16": ("export", "--to", "gguf", "--backend", "cuda"),
    "gguf-q8_0": ("export", "--to", "gguf", "--outtype", "q8_0", "--backend", "cuda"),
    "mlx": ("export", "--to", "mlx", "--backend", "cuda"),
}


def main() -> None:
    """Run the commands and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="Qwen2.5-1.5B")
    parser.add_argument("--only", choices=COMMANDS)
    parser.add_argument("--output", default=str(RESULTS / "export_memory.json"))
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(prefix="export-memory-") as place:
        folder = Path(place)
        make_model(options.model, folder / "model")
        make_adapter(options.model, folder)
        for name, command in COMMANDS.items():
            if options.only in (None, name):
                found[name] = measured(command, folder, MODELS[options.model])
                print(f"{name:10} {json.dumps(found[name])}", file=sys.stderr, flush=True)
    result = {
        "command": f"python -m benchmarks.export_memory --model {options.model}",
        "date": datetime.date.today().isoformat(),
        "machine": machine("cpu"),
        "model": options.model,
        "allowed_gb": MODELS[options.model],
        "commands": found,
    }
    write(result, options.output)
    if not all(one["within"] for one in found.values()):
        sys.exit("more memory than promised")


def make_model(name: str, folder: Path) -> None:
    """A folder with random weights, written a tensor at a time."""
    from qwen_local.backends.cuda.weights import TorchWeights
    from qwen_local.embedded import tiny_model_path
    from qwen_local.export.merge import write_shards
    from qwen_local.models.published import PUBLISHED

    shape = PUBLISHED[f"Qwen/{name}"]
    folder.mkdir()
    config = {
        "model_type": shape.model_type,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": shape.tied,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_path() / file, folder)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        draw = np.random.default_rng(0)
        for key, size in shape.weight_shapes().items():
            if len(size) == 1:
                yield key, np.full(size, 0.0 if key.endswith("bias") else 1.0, np.float32)
            else:
                yield key, draw.standard_normal(size, np.float32) * np.float32(0.02)

    write_shards(folder, tensors(), TorchWeights(folder, "cpu"), dtype="bfloat16")


def make_adapter(name: str, folder: Path) -> None:
    """An adapter with matrices away from zero."""
    from qwen_local.adapters.lora import Adapter, initial_arrays
    from qwen_local.adapters.store import save_adapter
    from qwen_local.job.schema import LoraSpec
    from qwen_local.models.published import PUBLISHED

    shape, lora = PUBLISHED[f"Qwen/{name}"], LoraSpec(rank=16, dropout=0.0)
    draw = np.random.default_rng(1)
    arrays = {
        key: draw.standard_normal(array.shape, np.float32) * np.float32(0.02)
        if ".lora_B." in key
        else array
        for key, array in initial_arrays(shape, lora, seed=0).items()
    }
    model = str(folder / "model")
    save_adapter(Adapter(model, lora, shape.blocks, arrays), folder / "adapter")


def measured(command: tuple[str, ...], folder: Path, allowed: float) -> dict[str, Any]:
    """What a command needed, and what it says of its proof."""
    arguments = ["--adapter", str(folder / "adapter/peft"), "--output", str(folder / "out")]
    arguments += ["--device", "cpu", "--json", "--quiet"]
    begun, peak = time.monotonic(), 0
    said = folder / "said.json"
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen_local", *command, *arguments],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=out,
        )
        while process.poll() is None:
            peak = max(peak, peak_of(process.pid))
            time.sleep(0.1)
    seconds = time.monotonic() - begun
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    shutil.rmtree(folder / "out")
    figures = json.loads(said.read_text("utf-8"))
    return {
        "peak_gb": round(peak / 1e9, 2),
        "within": peak <= allowed * 1e9,
        "seconds": round(seconds, 1),
        **{
            key: figures[key]
            for key in ("merge_logit_difference", "max_logit_difference", "top1_agreement")
        },
    }


def peak_of(pid: int) -> int:
    """Peak resident memory of a process so far, in bytes; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", errors="replace")
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


if __name__ == "__main__":
    main()
