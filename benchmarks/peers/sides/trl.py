"""TRL: `SFTTrainer` with PEFT, and on a GPU Liger's kernels and flash attention where installed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import peft
import torch
import transformers

from benchmarks.peers.sides.watch import Watch, trainer_settings
from benchmarks.peers.work import LINEARS, read_work

trl: Any = importlib.import_module("trl")
hugging_face: Any = importlib.import_module("datasets")


def main() -> None:
    """Train on prompts and completions; the loss is on the completions, as TRL has it."""
    work, watch = read_work(), Watch()
    on_gpu = work.device == "gpu"
    flash = on_gpu and importlib.util.find_spec("flash_attn") is not None
    liger = on_gpu and importlib.util.find_spec("liger_kernel") is not None
    attention = "flash_attention_2" if flash else "sdpa"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        work.model, dtype=getattr(torch, work.dtype), attn_implementation=attention
    )
    special: dict[str, Any] = {
        "gradient_checkpointing": False,
        "use_liger_kernel": liger,
        "padding_free": flash,
        "train_sampling_strategy": "sequential",
        "max_length": work.max_length,
    }
    lora = peft.LoraConfig(
        r=work.rank,
        lora_alpha=work.alpha,
        lora_dropout=0.0,
        target_modules=list(LINEARS),
        task_type="CAUSAL_LM",
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**trainer_settings(work), **special),
        train_dataset=hugging_face.Dataset.from_list([conversation(row) for row in work.rows()]),
        processing_class=transformers.AutoTokenizer.from_pretrained(work.model),
        peft_config=lora,
        callbacks=[watch],
    )
    trainer.train()
    watch.report(work, ("trl",), {**special, "attn_implementation": attention})


def conversation(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """A row as TRL renders it with the chat template."""
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


if __name__ == "__main__":
    main()
