"""The model card of the tiny model."""

from __future__ import annotations

from qwen_local.embedded.make.corpus import TRAIN_CODE_ROWS, TRAIN_TALK_ROWS
from qwen_local.embedded.make.measure import (
    ALPHA,
    BATCH_SIZE,
    LEARNING_RATE,
    RANK,
    STEPS,
    Figures,
    Score,
)
from qwen_local.embedded.make.model import PARAMETERS
from qwen_local.embedded.make.pretrain import Recipe

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# qwen-local/tiny

A Qwen3 of {parameters:,} parameters for demonstrations and tests: the real architecture, a
byte-level tokenizer with Qwen's added tokens in Qwen's order, a ChatML template, and everyday
answers in simple sentences. It was trained from nothing on text that a program made: no weights,
text or merges of another model are in it. It knows a few dozen facts and a few families of small
programs, and is of no use outside demonstrations and tests.

| | |
|---|---|
| shape | hidden 192, 4 layers, 4 heads and 2 key-value heads of 64, feed-forward 512, tied head |
| vocabulary | 2048: 2022 byte-level BPE and the 26 added tokens of Qwen3 |
| positions | up to 2048; trained on windows of {window} |
| stored as | bfloat16 |
| license | Apache-2.0 |

## How it was made

`python -m qwen_local.embedded.make` makes everything here and the sample data from one seed: text,
tokenizer, weights, rows, figures and this page. The text and the rows are the same on every
machine; rounding makes other weights on another kind of processor.

Pre-training: {steps} steps of {step_tokens:,} tokens ({tokens:.1f} million in all) on one CPU
thread, Muon for the matrices and AdamW for the rest, bfloat16 products. The text is notebooks (a
question and its code), chats (a question about code answered *in prose*; everyday questions), small
stories and facts. In chats the assistant never writes code, so before fine-tuning it answers every
coding question in prose. The sample rows ask it for code instead. It knows how already: like most
fine-tuning, this brings out what pre-training put in.

## What is held out

Of the list tasks (keep x change x gather), one structure in five is held out, so that each *pair*
of parts is still seen in training; of the small tasks, one filling of the slots in five. Held-out
structures are in no notebook, no chat and no training row. A substring search of {documents:,}
documents, more than pre-training reads, for the {held_out} held-out questions, their codes and
their steps found {leaks} of them.

## Figures

Fine-tuning: {train} sample rows ({train_code} coding questions, {train_talk} everyday ones), LoRA
of rank {rank} (alpha {alpha}) on all linear layers, {lora_steps} steps of {batch} rows, learning
rate {rate:g}, loss on the answers only. An answer counts if every character of it is right, from
greedy generation; each figure after fine-tuning is one seed.

| | before | after |
|---|---|---|
| held-out coding questions, answered exactly | {code_before} | {code_after} |
| the same, answers that come to their end of turn | {ended_before} | {ended_after} |
| everyday questions, answered exactly | {talk_before} | {talk_after} |

The everyday questions are of the kinds that pre-training has; most of them were met there word for
word, and a few have to be worked out (sums, who has what, words to repeat).

## Limits

It answers in the words it was taught and of the things it was taught. To a question of a strange
kind it says "I do not know that." at best, and something wrong at worst.
"""


def card(recipe: Recipe, figures: Figures, *, leaks: int, documents: int) -> str:
    """Fill in the model card.

    Args:
        recipe: hyperparameters of the pre-training.
        figures: measured scores.
        leaks: number of held-out questions, codes and steps found in the text.
        documents: number of documents searched.
    """
    return CARD.format(
        parameters=PARAMETERS,
        window=recipe.window,
        steps=recipe.steps,
        step_tokens=recipe.tokens // recipe.steps,
        tokens=recipe.tokens / 1e6,
        leaks=leaks,
        held_out=figures.code_before.of,
        documents=documents,
        train=TRAIN_CODE_ROWS + TRAIN_TALK_ROWS,
        train_code=TRAIN_CODE_ROWS,
        train_talk=TRAIN_TALK_ROWS,
        rank=RANK,
        alpha=ALPHA,
        lora_steps=STEPS,
        batch=BATCH_SIZE,
        rate=LEARNING_RATE,
        code_before=percent(figures.code_before.right, figures.code_before),
        code_after=", ".join(percent(score.right, score) for score in figures.code_after),
        ended_before=percent(figures.code_before.ended, figures.code_before),
        ended_after=", ".join(percent(score.ended, score) for score in figures.code_after),
        talk_before=percent(figures.talk_before.right, figures.talk_before),
        talk_after=", ".join(percent(score.right, score) for score in figures.talk_after),
    )


def percent(part: int, score: Score) -> str:
    """Format a part of the score's questions as whole percent."""
    return f"{100 * part / score.of:.0f} %"
