"""Unsloth: its model under TRL's trainer, on rows that are tokenized beforehand."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.peers.work import LINEARS, Work, read_work

unsloth: Any = importlib.import_module("unsloth")  # first: it changes what is imported after it


def main() -> None:
    """Train as Unsloth's notebooks do, without its gradient checkpointing."""
    import torch

    from benchmarks.peers.sides.watch import Watch, trainer_settings

    trl: Any = importlib.import_module("trl")
    hugging_face: Any = importlib.import_module("datasets")
    work, watch = read_work(), Watch()
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        model_name=work.model,
        max_seq_length=work.max_length,
        dtype=getattr(torch, work.dtype),
        load_in_4bit=False,
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=work.rank,
        lora_alpha=work.alpha,
        lora_dropout=0,
        bias="none",
        target_modules=list(LINEARS),
        use_gradient_checkpointing=False,
        random_state=work.seed,
    )
    special = {"max_length": work.max_length, "gradient_checkpointing": False}
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**trainer_settings(work), **special),
        train_dataset=hugging_face.Dataset.from_list(tokenized(work, tokenizer)),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    # The setting for this differs between the releases of TRL that Unsloth works with.
    order = torch.utils.data.SequentialSampler
    trainer._get_train_sampler = lambda *_: order(trainer.train_dataset)
    trainer.train()
    watch.report(work, ("unsloth", "unsloth_zoo", "trl", "xformers"), special)


def tokenized(work: Work, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Rows with labels, which Unsloth takes as they are; the prompt is masked."""
    found = []
    for row in work.rows():
        prompt = [{"role": "user", "content": row["prompt"]}]
        turns = [*prompt, {"role": "assistant", "content": row["completion"]}]
        asked = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=False, tokenize=True
        )
        ids = tokenizer.apply_chat_template(turns, return_dict=False, tokenize=True)
        labels = [-100] * len(asked) + ids[len(asked) :]
        found.append({"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)})
    return found


if __name__ == "__main__":
    main()
