"""Models of the published shapes whose weights are zero: their files are holes, made in no time."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

from benchmarks.peers.models import give_tokenizer, shape
from qwen_local.models.published import QWEN3_SIZES


def zero_model(size: str, folder: Path) -> Path:
    """Make a Qwen3 in bfloat16 with the embedded model's tokenizer; return its folder.

    Args:
        size: `0.6B`, `1.7B`, `8B`, ...
        folder: the model is made below it, once.
    """
    made = folder / f"Qwen3-{size}"
    if made.exists():
        return made
    unfinished = folder / f"{made.name}.{os.getpid()}"  # another process may make the same one
    unfinished.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        **(shape(f"Qwen3-{size}") or {}),
    }
    (unfinished / "config.json").write_text(json.dumps(config))
    give_tokenizer(unfinished)
    header, end = {}, 0
    for name, sizes in QWEN3_SIZES[size].weight_shapes().items():
        start, end = end, end + 2 * math.prod(sizes)
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with (unfinished / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    try:
        return unfinished.rename(made)
    except OSError:
        shutil.rmtree(unfinished)
        if not made.exists():
            raise
        return made
