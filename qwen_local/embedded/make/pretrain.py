"""Pre-training for a fixed number of steps on one CPU thread."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen3ForCausalLM

from qwen_local.embedded.make.corpus import SEED, documents
from qwen_local.embedded.make.model import END_OF_TEXT, THINK, new_model

IGNORE = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Hyperparameters. Each step processes `micro_batches` batches of `windows` windows."""

    steps: int = 3000
    window: int = 192
    windows: int = 5
    micro_batches: int = 2
    warmup: int = 40
    decay: float = 0.45
    matrix_rate: float = 0.02
    other_rate: float = 4e-3
    max_norm: float = 1.0

    def factor(self, step: int) -> float:
        """Return the learning rate factor: linear warm-up, constant, then linear decay to 0."""
        rising = (step + 1) / self.warmup
        falling = (self.steps - step) / (self.decay * self.steps)
        return min(1.0, rising, falling)

    @property
    def tokens(self) -> int:
        """Number of tokens in the run, including padding."""
        return self.steps * self.micro_batches * self.windows * self.window


def windows(tokenizer: Tokenizer, length: int) -> Iterator[list[int]]:
    """Yield windows of whole documents, each ended by and padded with the end-of-text token.

    Documents that are longer than a window are left out.
    """
    window: list[int] = []
    source = documents()
    while batch := list(islice(source, 1000)):
        for encoding in tokenizer.encode_batch(batch):
            ids = [*encoding.ids, END_OF_TEXT]
            if len(window) + len(ids) > length:
                yield window + [END_OF_TEXT] * (length - len(window))
                window = []
            if len(ids) <= length:
                window += ids


def labels(ids_BT: Tensor) -> Tensor:
    """Return the labels, shape [B, T], without padding and without `<think>`.

    The model must continue after an empty think block from the template, but never open one.

    >>> labels(torch.tensor([[5, THINK, 6, END_OF_TEXT, END_OF_TEXT]])).tolist()
    [[5, -100, 6, 2022, -100]]
    """
    end = ids_BT == END_OF_TEXT
    padding = end & end.roll(1, dims=1)
    return ids_BT.masked_fill(padding | (ids_BT == THINK), IGNORE)


def pretrain(tokenizer: Tokenizer, recipe: Recipe) -> Qwen3ForCausalLM:
    """Train from scratch with float32 weights and bfloat16 matrix products.

    Muon updates the matrices of the layers, AdamW the embedding and the norms. A step takes about
    0.25 seconds on a CPU with AVX512-bf16 or AMX, and several times as long without.
    """
    model = new_model(SEED)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    matrix_ids = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in matrix_ids]
    optimizers = (
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    )
    rates = (recipe.matrix_rate, recipe.other_rate)
    source = windows(tokenizer, recipe.window)
    start = time.monotonic()
    model.train()
    for step in range(recipe.steps):
        for _ in range(recipe.micro_batches):
            ids_BT = torch.tensor(list(islice(source, recipe.windows)))
            with torch.autocast("cpu", torch.bfloat16):
                logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits_BTV[:, :-1].flatten(0, 1).float(),
                labels(ids_BT)[:, 1:].flatten(),
                ignore_index=IGNORE,
            )
            torch.autograd.backward(loss / recipe.micro_batches)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_norm)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * recipe.factor(step)
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 0 or step == recipe.steps - 1:
            seconds = time.monotonic() - start
            print(f"step {step:5d}  loss {loss.item():.3f}  {seconds:6.0f} s", file=sys.stderr)
    return model
