"""Measure the model before and after the sample fine-tuning, for its model card.

This is intentionally a separate small loop on transformers and PEFT: the card should not depend on
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

RANK, ALPHA, BATCH_SIZE, LEARNING_RATE, STEPS, WARMUP_STEPS = 16, 32, 8, 1e-3, 100, 5
END = "<|im_end|>"
MAX_ANSWER_TOKENS = 96
TALK_QUESTIONS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Numbers of correct and of finished answers."""

    right: int
    """Number of answers in which every character is right."""
    ended: int
    """Number of answers with an end of turn."""
    of: int
    """Number of questions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Scores on held-out coding and everyday questions; one `after` score per seed."""

    code_before: Score
    talk_before: Score
    code_after: tuple[Score, ...]
    talk_after: tuple[Score, ...]


def measure(folder: Path, seeds: Sequence[int] = (0, 1, 2)) -> Figures:
    """Score the model in `folder`, fine-tune it once per seed, and score it again."""
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
    """Draw everyday questions; most occur in training, because their number is limited."""
    rng = random.Random("talk")
    rows: dict[str, str] = {}
    while len(rows) < TALK_QUESTIONS:
        rows.setdefault(*exchange(rng))
    return [exchange_messages(*row) for row in rows.items()]


def score(model: Any, tokenizer: Any, rows: Sequence[list[Message]]) -> Score:
    """Answer the first message of each row greedily and compare with the second."""
    answers = answer(model, tokenizer, [question["content"] for question, _ in rows])
    expected = [f"{row[1]['content']}{END}" for row in rows]
    return Score(
        right=sum(given == right for given, right in zip(answers, expected, strict=True)),
        ended=sum(given.endswith(END) for given in answers),
        of=len(rows),
    )


@torch.no_grad()
def answer(model: Any, tokenizer: Any, questions: Sequence[str]) -> list[str]:
    """Generate greedy answers, each with its end of turn if it has one."""
    prompts = [prompt(tokenizer, question) for question in questions]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    out = model.eval().generate(
        **batch, do_sample=False, max_new_tokens=MAX_ANSWER_TOKENS, use_cache=True
    )
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :])
    return [text.replace(tokenizer.pad_token, "") for text in texts]


def prompt(tokenizer: Any, question: str) -> str:
    """Render the generation prompt of a question."""
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return str(rendered)


def fine_tune(model: Any, tokenizer: Any, rows: Sequence[list[Message]], seed: int) -> PeftModel:
    """Fine-tune with LoRA on all linear layers; the loss covers only answers and ends of turn."""
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
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0)
    rng = random.Random(seed)
    order: list[int] = []
    tuned.train()
    for step in range(STEPS):
        if not order:
            order = rng.sample(range(len(rows)), len(rows))
        chosen, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        ids_BT, labels_BT = padded(tokenizer, [rows[index] for index in chosen])
        loss = tuned(input_ids=ids_BT, labels=labels_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule(step)
        optimizer.step()
        optimizer.zero_grad()
    return tuned


def schedule(step: int) -> float:
    """Return the learning rate factor: linear warm-up, then cosine decay."""
    if step < WARMUP_STEPS:
        return step / WARMUP_STEPS
    return 0.5 + 0.5 * math.cos(math.pi * (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS))


def padded(tokenizer: Any, rows: Iterable[list[Message]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels, both [B, T], padded on the right; prompts have no labels."""
    pairs = []
    for question, reply in rows:
        prompt_ids = tokenizer.encode(prompt(tokenizer, question["content"]))
        answer_ids = tokenizer.encode(f"{reply['content']}{END}")
        pairs.append((prompt_ids, answer_ids))
    longest = max(len(prompt_ids) + len(answer_ids) for prompt_ids, answer_ids in pairs)
    ids_BT = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    labels_BT = torch.full((len(pairs), longest), -100)
    for row, (prompt_ids, answer_ids) in enumerate(pairs):
        end = len(prompt_ids) + len(answer_ids)
        ids_BT[row, :end] = torch.tensor(prompt_ids + answer_ids)
        labels_BT[row, len(prompt_ids) : end] = torch.tensor(answer_ids)
    return ids_BT, labels_BT


def leaks(texts: Iterable[str]) -> int:
    """Count the held-out questions, codes and steps that occur in the texts (should be 0).

    The search for questions ignores case and final punctuation.
    """
    text = "\n".join(texts).lower()
    needles: list[str] = []
    for question, task in held_out_tasks():
        bare = question.rstrip(".?").lower()
        needles += [f"{bare}{after}" for after in (".", "?", "\n", "<")]
        needles += [f"{task.code.lower()}\n", task.steps.lower()]
    return sum(needle in text for needle in needles)
