"""The command line on a GPU: train, go on, ask; and the adapter as PEFT loads it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.agreement import Place
from benchmarks.parts import Figure, check, ratio, skipped


def command_line(here: Place) -> Iterator[Figure]:
    """A run on the sample data, its continuation, an answer and its adapter elsewhere."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch, "run")
        fixed = ("--set", "train.schedule=constant", "--set", "train.save_every=4")
        place = ("--backend", here.engine, "--device", here.device)
        first = said("train", *place, "--steps", "8", *fixed, "--output", str(run))
        more = said("train", *place, "--steps", "24", *fixed, "--output", str(run), "--resume")
        yield check("steps short of 24 after --resume", 24 - int(more["steps"]), at_most=0)
        yield check(
            "training loss after them, to that of the first 8",
            ratio(more["train_loss"], first["train_loss"]),
            at_most=0.9,
        )
        prompt = ("--prompt", "What is the capital of France?", "--max-tokens", "16")
        answer = said("generate", *place, "--adapter", str(run), *prompt)
        yield check("answers without a token", float(answer["completion_tokens"] < 1), at_most=0)
        yield from loads_in_peft(run / "adapter" / "peft")


def loads_in_peft(folder: Path) -> Iterator[Figure]:
    """The adapter through PEFT's own loader: every array is taken, and it changes the logits."""
    if find_spec("peft") is None:
        yield skipped("PEFT is not installed")
        return
    import peft
    import torch
    import transformers

    from qwen_local.embedded import tiny_model_path

    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_path())
    ids = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        before = base(input_ids=ids).logits.float()
        model = peft.PeftModel.from_pretrained(base, folder)
        after = model(input_ids=ids).logits.float()
    factors = [p for name, p in model.named_parameters() if "lora_B" in name]
    empty = sum(not bool(p.any()) for p in factors)
    yield check("factors that PEFT left empty", empty, at_most=0)
    moved = float((after - before).abs().max())
    yield {"figure": "largest change of a logit by the adapter in PEFT", "value": moved}


def said(*arguments: str) -> dict[str, Any]:
    """What a command prints under --json, in a process of its own."""
    command = [sys.executable, "-m", "qwen_local", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    content: dict[str, Any] = json.loads(done.stdout)
    return content
