"""Folders that the libraries themselves quantized from the embedded model, for several tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from qwen_local.embedded import tiny_model_path
from qwen_local.models.source import ModelFiles, fetch, find_model

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
SCHEMES: dict[str, dict[str, Any]] = {
    "nested": NF4 | {"bnb_4bit_use_double_quant": True},
    "nf4": NF4,
    "int8": {"load_in_8bit": True},
}
"""What bitsandbytes writes: NF4 with its scales quantized and without, LLM.int8()."""


def by_bitsandbytes(folder: Path, scheme: str, *, tied: bool = True, **settings: Any) -> Path:
    """As transformers saves it.

    Args:
        folder: to be made.
        scheme: of `SCHEMES`.
        tied: whether the head is the embedding; where not, it is another matrix.
        settings: more of `BitsAndBytesConfig`.
    """
    import torch
    import transformers

    from qwen_local.backends.cuda.quiet import import_bitsandbytes

    import_bitsandbytes()

    source = tiny_model_path()
    if not tied:
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="auto")
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach() * 1.5)
        source = folder.with_name(f"{folder.name}-untied")
        model.save_pretrained(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        dtype="auto",
        device_map={"": "cpu"},
        quantization_config=transformers.BitsAndBytesConfig(**SCHEMES[scheme], **settings),
    )
    model.save_pretrained(folder)
    return with_tokenizer(folder)


def by_mlx(folder: Path, **settings: Any) -> Path:
    """As `mlx_lm.convert -q` writes it: the embedding in codes, too.

    Args:
        folder: to be made.
        settings: more of `mlx_lm.utils.quantize_model`.
    """
    import mlx_lm.utils

    model, config = mlx_lm.utils.load_model(tiny_model_path())
    given = {"group_size": 64, "bits": 4} | settings
    model, config = mlx_lm.utils.quantize_model(model, config, **given)
    mlx_lm.utils.save_model(folder, model)
    mlx_lm.utils.save_config(config, folder / "config.json")
    return with_tokenizer(folder)


def with_tokenizer(folder: Path) -> Path:
    """A model's folder, made ready for a command."""
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tiny_model_path() / file, folder)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of a folder's config.json; None removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def checked(folder: Path) -> ModelFiles:
    """The model, as a command takes it."""
    return fetch(find_model(str(folder)))
