"""Build `qwen-local/tiny` and its sample data from one seed; this takes about 15 minutes.

    python -m qwen_local.embedded.make [FOLDER]

writes FOLDER/tiny and FOLDER/data; the default FOLDER is in the package itself. It needs
torch 2.9 (for Muon), PEFT and transformers.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import torch

from qwen_local.embedded import tiny_model_path
from qwen_local.embedded.make.corpus import documents, write_rows
from qwen_local.embedded.make.measure import leaks, measure
from qwen_local.embedded.make.model import MAX_LENGTH, save_model
from qwen_local.embedded.make.model_card import card
from qwen_local.embedded.make.pretrain import Recipe, pretrain
from qwen_local.embedded.make.tokenizer import save_tokenizer, train_tokenizer

TOKENIZER_DOCUMENTS = 20_000
SEARCHED_DOCUMENTS = 120_000


def make(folder: Path, recipe: Recipe) -> None:
    """Write the sample rows, the tokenizer, the weights and the model card."""
    tiny, data = folder / "tiny", folder / "data"
    for each in (tiny, data):
        each.mkdir(parents=True, exist_ok=True)
    write_rows(data)
    tokenizer = train_tokenizer(islice(documents(), TOKENIZER_DOCUMENTS))
    save_tokenizer(tokenizer, tiny, max_length=MAX_LENGTH)
    save_model(pretrain(tokenizer, recipe), tiny)
    text = card(
        recipe,
        measure(tiny),
        leaks=leaks(islice(documents(), SEARCHED_DOCUMENTS)),
        documents=SEARCHED_DOCUMENTS,
    )
    (tiny / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)  # these shapes are too small to gain from a second thread
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else tiny_model_path().parent, Recipe())
