"""What the model can do before and after the sample fine-tuning: the figures of its card.

This is a small loop of its own on transformers and PEFT, on purpose: the card should not depend on
the product that the model is used to test.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwen_local.embedded.make.corpus import (
    Message,
    exchange_messages,
    held_out_rows,
    held_out_tasks,
    train_rows,
)
from qwen_local.embedded.make.talk import exchange

RANK, ALPHA, BATCH, RATE, STEPS, WARMUP = 16, 32, 8, 1e-3, 100, 5
END = "<|im_end|>"
LONGEST_ANSWER = 96
TALK_QUESTIONS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How many answers were right to the last sign, and how many came to their end."""

    right: int
    ended: int
    of: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Held-out code questions and everyday questions, before and after; one `after` per seed."""

    code_before: Score
    talk_before: Score
    code_after: tuple[Score, ...]
    talk_after: tuple[Score, ...]


def measure(folder: Path, seeds: Sequence[int] = (0, 1, 2)) -> Figures:
    """Ask the model in `folder`, fine-tune it once per seed, and ask again."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    code, talk = held_out_rows(), talk_rows()

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    base = load()
    code_after, talk_after = [], []
    for seed in seeds:
        tuned = fine_tune(load(), tokenizer, train_rows(), seed)
        code_after.append(score(tuned, tokenizer, code))
        talk_after.append(score(tuned, tokenizer, talk))
    return Figures(
        code_before=score(base, tokenizer, code),
        talk_before=score(base, tokenizer, talk),
        code_after=tuple(code_after),
        talk_after=tuple(talk_after),
    )


def talk_rows() -> list[list[Message]]:
    """Everyday questions; training has met most of them, for there are only so many."""
    rng = random.Random("talk")
    rows: dict[str, str] = {}
    while len(rows) < TALK_QUESTIONS:
        rows.setdefault(*exchange(rng))
    return [exchange_messages(*row) for row in rows.items()]


def score(model: Any, tokenizer: Any, rows: Sequence[list[Message]]) -> Score:
    """Answer the first message of each row greedily and compare with the second."""
    answers = answer(model, tokenizer, [question["content"] for question, _ in rows])
    wanted = [f"{row[1]['content']}{END}" for row in rows]
    return Score(
        right=sum(given == want for given, want in zip(answers, wanted, strict=True)),
        ended=sum(given.endswith(END) for given in answers),
        of=len(rows),
    )


@torch.no_grad()
def answer(model: Any, tokenizer: Any, questions: Sequence[str]) -> list[str]:
    """Greedy answers, each with its end of turn if it came to one."""
    prompts = [prompt(tokenizer, question) for question in questions]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    out = model.eval().generate(
        **batch, do_sample=False, max_new_tokens=LONGEST_ANSWER, use_cache=True
    )
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :])
    return [text.replace(tokenizer.pad_token, "") for text in texts]


def prompt(tokenizer: Any, question: str) -> str:
    """The question as the template renders it, up to where the answer begins."""
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return str(rendered)


def fine_tune(model: Any, tokenizer: Any, rows: Sequence[list[Message]], seed: int) -> PeftModel:
    """LoRA on all linear layers, loss on the answer and its end of turn only."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(model, config)
    trainable = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=0.0)
    rng = random.Random(seed)
    order: list[int] = []
    tuned.train()
    for step in range(STEPS):
        if not order:
            order = rng.sample(range(len(rows)), len(rows))
        chosen, order = order[:BATCH], order[BATCH:]
        ids_BT, labels_BT = padded(tokenizer, [rows[index] for index in chosen])
        loss = tuned(input_ids=ids_BT, labels=labels_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.param_groups[0]["lr"] = RATE * schedule(step)
        optimizer.step()
        optimizer.zero_grad()
    return tuned


def schedule(step: int) -> float:
    """Up for the first steps, then down along half a cosine."""
    if step < WARMUP:
        return step / WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))


def padded(tokenizer: Any, rows: Iterable[list[Message]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, both [B, T], padded on the right; the question has no labels."""
    pairs = []
    for question, reply in rows:
        asked = tokenizer.encode(prompt(tokenizer, question["content"]))
        told = tokenizer.encode(f"{reply['content']}{END}")
        pairs.append((asked, told))
    longest = max(len(asked) + len(told) for asked, told in pairs)
    ids_BT = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    labels_BT = torch.full((len(pairs), longest), -100)
    for row, (asked, told) in enumerate(pairs):
        both = len(asked) + len(told)
        ids_BT[row, :both] = torch.tensor(asked + told)
        labels_BT[row, len(asked) : both] = torch.tensor(told)
    return ids_BT, labels_BT


def leaks(texts: Iterable[str]) -> int:
    """How often a held-out question, its code or its steps stand in the texts (should be 0).

    Questions are sought whatever their capitals and their last mark.
    """
    text = "\n".join(texts).lower()
    sought: list[str] = []
    for question, task in held_out_tasks():
        asked = question.rstrip(".?").lower()
        sought += [f"{asked}{after}" for after in (".", "?", "\n", "<")]
        sought += [f"{task.code.lower()}\n", task.steps.lower()]
    return sum(needle in text for needle in sought)
