"""The job of reference run R4 as it was written, against this tool's preset for the same job.

R4 (docs/reference-runs.md) trained Qwen3-0.6B on MovieLens questions with one-word answers: one row
a step, NF4, gradient checkpointing, rank 16 on every linear layer, dropout 0.05; and evaluated row
by row. That is done here by transformers, PEFT and bitsandbytes alone, without a trainer's own work
around it, and by this project's engine under the same settings. The preset for a model of this size
is batch 8, unquantized, no checkpointing. Weights and rows are random, so this says how fast, not
how well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.made_rows import made_rows
from benchmarks.parts import Device, Figure
from benchmarks.peers.models import make_model
from benchmarks.roofline import DTYPES, MICRO_BATCH_TOKENS
from benchmarks.timing import release, synchronize
from qwen_local.backends.base import Backend, Setup
from qwen_local.backends.cuda.quiet import import_bitsandbytes
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from qwen_local.job.presets import preset_for
from qwen_local.job.schema import LoraSpec
from qwen_local.models.families import TARGETS
from qwen_local.models.source import fetch, find_model
from qwen_local.rows.rows import Rows

MODEL: dict[Device, str] = {"gpu": "Qwen3-0.6B", "cpu": "tiny"}
SECONDS: dict[Device, float] = {"gpu": 6.0, "cpu": 1.0}
"""For how long each is measured."""
WARM_UP = 3
RANK, ALPHA, DROPOUT, RATE = 16, 64.0, 0.05, 1.5e-4
"""Of R4."""
POOL = 256
"""Different rows."""


def as_written_and_preset(device: Device, folder: Path) -> Iterator[Figure]:
    """Examples a second of training and of evaluation, each way."""
    model = make_model(MODEL[device], DTYPES[device], folder)
    rows = made_rows("movielens", POOL, np.random.default_rng(0), vocabulary=2000)
    found: dict[str, dict[str, float]] = {}
    ways: dict[str, Callable[[], tuple[Work, Work, int]]] = {
        "transformers, PEFT and bitsandbytes": partial(plain, model, device),
        "this engine, the same settings": partial(ours, model, device, preset=False),
        "this engine, its preset": partial(ours, model, device, preset=True),
    }
    for name, opened in ways.items():
        release(device)
        step, score, batch = opened()
        found[name] = {
            "rows_of_a_step": batch,
            "examples_per_second": rate(step, rows, batch, device),
            "evaluated_per_second": rate(score, rows, POOL // 4 if batch > 1 else 1, device),
        }
        if device == "gpu":
            found[name]["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        del step, score
        yield {"job": name, **found[name]}
    written, _, best = found.values()
    yield {
        "training_times": round(best["examples_per_second"] / written["examples_per_second"], 2),
        "evaluation_times": round(
            best["evaluated_per_second"] / written["evaluated_per_second"], 2
        ),
    }


Work = Callable[[Rows], object]


def rate(work: Work, rows: Rows, batch: int, device: Device) -> float:
    """Rows a second, so many at a time, until the time is up."""
    done = 0

    def once() -> None:
        nonlocal done
        start = done * batch % POOL
        work(rows.take(range(start, min(start + batch, POOL))))
        done += 1

    for _ in range(WARM_UP):
        once()
    synchronize(device)
    began, before = time.perf_counter(), done
    while time.perf_counter() - began < SECONDS[device]:
        once()
    synchronize(device)
    return round((done - before) * batch / (time.perf_counter() - began), 2)


def ours(model: Path, device: Device, *, preset: bool) -> tuple[Work, Work, int]:
    """(a step, an evaluation, rows of a step) of this project's engine."""
    files = fetch(find_model(str(model)))
    values = preset_for("small", files.architecture.parameters())
    assert values is not None
    batch = int(values.values["train.batch_size"]) if preset else 1
    setup = Setup(
        model=files,
        lora=LoraSpec(rank=RANK, alpha=ALPHA, dropout=DROPOUT),
        device=device,
        dtype=DTYPES[device],
        quantization="none" if preset else "4bit",
        max_grad_norm=1.0,
        micro_batch_tokens=MICRO_BATCH_TOKENS[device],
        gradient_checkpointing=not preset,
    )
    backend: Backend = open_backend(Choice("cuda", device, "a benchmark"), setup)
    return (
        lambda rows: backend.step(rows, lr=RATE, tokens=rows.supervised),
        lambda rows: backend.score(rows),
        batch,
    )


def plain(folder: Path, device: Device) -> tuple[Work, Work, int]:
    """The same of the libraries alone, one row at a time."""
    import_bitsandbytes()
    import peft
    import transformers

    dtype = getattr(torch, DTYPES[device])
    place = torch.device("cuda" if device == "gpu" else "cpu")
    quantized = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=quantized,
        attn_implementation="sdpa",
        device_map={"": place},
    )
    for layer in model.modules():  # else a CPU with AVX512-BF16 repacks the codes for good
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    model = peft.prepare_model_for_kbit_training(
        model, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules=list(TARGETS),
    )
    model = peft.get_peft_model(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

    def loss_of(rows: Rows) -> torch.Tensor:
        ids, targets = (
            torch.from_numpy(a).to(place, torch.int64)[None]
            for a in (rows.row(0)[0], rows.row(0)[1].ids_T)
        )
        # transformers shifts the labels itself: it takes them where the token stands.
        labels = torch.nn.functional.pad(targets, (1, 0), value=-100)[:, :-1]
        with torch.autocast(place.type, dtype, enabled=device == "gpu"):
            loss: torch.Tensor = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, use_cache=False
            ).loss
        return loss

    def step(rows: Rows) -> float:
        model.train()
        loss = loss_of(rows)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    @torch.no_grad()
    def score(rows: Rows) -> float:
        model.eval()
        return float(loss_of(rows))

    return step, score, 1
