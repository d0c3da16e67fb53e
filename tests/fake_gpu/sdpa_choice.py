"""Prints the kernel that attention in bfloat16 gets before and after an engine is opened."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend

from qwen_local.backends.base import Setup
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from qwen_local.embedded import TINY_MODEL
from qwen_local.models.source import fetch, find_model


def main() -> None:
    """Print both names."""
    before = choice()
    setup = Setup(model=fetch(find_model(TINY_MODEL)), lora=None, device="gpu", dtype="bfloat16")
    open_backend(Choice("cuda", "gpu", "the card"), setup)
    print(before, choice())


def choice() -> str:
    """Return the name of the kernel for one query after 63 others."""
    queries = torch.zeros(1, 8, 1, 64, dtype=torch.bfloat16, device="cuda")
    keys = torch.zeros(1, 8, 64, 64, dtype=torch.bfloat16, device="cuda")
    return SDPBackend(torch._fused_sdp_choice(queries, keys, keys)).name


if __name__ == "__main__":
    main()
