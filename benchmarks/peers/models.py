"""Models to train: Qwen3 in several sizes, random weights, the embedded model's tokenizer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.work import FailedError, last_line
from qwen_local.embedded import tiny_model_path
from qwen_local.models.published import QWEN3_SIZES

SMALL: dict[str, dict[str, int]] = {
    "mlx": {
        "vocab_size": 32_000,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
    },
    "small": {
        "vocab_size": 151_936,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
}
"""Made-up sizes, with tied heads."""
PUBLISHED = ("0.6B", "1.7B", "8B")
NAMES = ("tiny", *SMALL, *(f"Qwen3-{size}" for size in PUBLISHED))

CARD, DISK = 23e9, 20e9
"""Bytes that Qwen3-8B in bfloat16 needs of a card, which tells a little less than it was sold with,
and of the temporary folder's disk."""

SCRIPT = """
import json, sys, torch, transformers
shape, dtype, tiny, folder = json.loads(sys.argv[1])
if shape is None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=getattr(torch, dtype))
else:
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**shape)
    # Billions of random numbers take minutes on a CPU.
    large = shape["hidden_size"] >= 1024 and torch.cuda.is_available()
    with torch.device("cuda" if large else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
model.save_pretrained(folder)
"""
LAST_LINE_END = "{{- '<|im_end|>\\n' }}\n{%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt"
WITHOUT = (
    "{{- '<|im_end|>' + ('' if loop.last and message.role == 'assistant' else '\\n') }}\n"
    "{%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt"
)


def shape(name: str) -> dict[str, Any] | None:
    """Arguments of `transformers.Qwen3Config`; None for the embedded model, which has its own."""
    if name == "tiny":
        return None
    rest = {"max_position_embeddings": 40_960, "eos_token_id": 2024, "pad_token_id": 2022}
    if name in SMALL:
        return {**SMALL[name], "tie_word_embeddings": True, **rest}
    known = QWEN3_SIZES[name.removeprefix("Qwen3-")]
    return {
        "vocab_size": known.vocabulary,
        "hidden_size": known.hidden,
        "intermediate_size": known.intermediate,
        "num_hidden_layers": known.layers,
        "num_attention_heads": known.heads,
        "num_key_value_heads": known.kv_heads,
        "head_dim": known.head_dim,
        "tie_word_embeddings": known.tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": known.rope_theta},
        **rest,
    }


def no_room(name: str, card_bytes: int, folder: Path) -> str | None:
    """Why a model is not worth making here, where it is not.

    Args:
        name: of the model.
        card_bytes: of the card's memory.
        folder: where it would be made.
    """
    if name != "Qwen3-8B":
        return None
    if card_bytes < CARD:
        return f"{name} needs a card of 24 GB; this one has {card_bytes / 1e9:.0f}"
    free = shutil.disk_usage(folder).free
    if free < DISK:
        needs = f"{name} needs {DISK / 1e9:.0f} GB of the temporary folder's disk"
        return f"{needs}; {free / 1e9:.0f} are free"
    return None


def make_model(name: str, dtype: str, folder: Path) -> Path:
    """A model's folder below `folder`, made once.

    Raises:
        FailedError: it cannot be made here.
    """
    made, begun = folder / f"{name}-{dtype}", folder / f"{name}-{dtype}.begun"
    if made.exists():
        return made
    shutil.rmtree(begun, ignore_errors=True)
    print(f"making the model {name} ...", file=sys.stderr, flush=True)
    given = json.dumps([shape(name), dtype, str(tiny_model_path()), str(begun)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode:
        raise FailedError(f"making {name} ended with {done.returncode}: {last_line(done.stdout)}")
    give_tokenizer(begun)
    return begun.rename(made)


def give_tokenizer(folder: Path) -> None:
    """Put the embedded model's tokenizer and chat template into a model's folder.

    The template is changed in one place: no line end follows the last answer. The peers learn that
    line end and this project does not, and where an answer is one word it would be a third of what
    is learned.
    """
    shutil.copy(tiny_model_path() / "tokenizer.json", folder)
    config = json.loads((tiny_model_path() / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = without_last_line_end(config["chat_template"])
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def without_last_line_end(template: str) -> str:
    """The embedded chat template with nothing behind the end of the last answer."""
    assert template.count(LAST_LINE_END) == 1
    return template.replace(LAST_LINE_END, WITHOUT)
