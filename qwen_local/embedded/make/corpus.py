"""Pre-training text and sample rows of the tiny model, generated in pure Python from one seed.

In the pre-training text, the assistant describes solutions in prose and never writes a code fence;
notebooks contain the same questions with code. The model learns both, so fine-tuning on a few rows
only has to move the code into the assistant's turn.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from qwen_local.embedded.make import small_tasks
from qwen_local.embedded.make.holdout import held_out
from qwen_local.embedded.make.list_tasks import GRIDS, list_task
from qwen_local.embedded.make.talk import exchange, facts, story
from qwen_local.embedded.make.task import Task, ask, capitalize_first

Message = dict[str, str]
"""`role` and `content`."""

SEED = 0
TRAIN_CODE_ROWS, TRAIN_TALK_ROWS = 180, 20
STRANGE = 0.08
"""Fraction of the pre-training tasks with a nonsense word; the sample rows have none."""

# Keep the tables compact.
# fmt: off
FAMILIES = {
    "numbers": 34, "words": 27, "arithmetic": 9, "check": 9, "loop": 8, "collection": 7,
    "choice": 6,
}
"""Percentage of each task family in the training tasks."""

HELD_OUT_ROWS = {
    "numbers": 40, "words": 24, "arithmetic": 9, "check": 9, "loop": 7, "collection": 6,
    "choice": 5,
}
# fmt: on
SMALL: dict[str, Callable[[random.Random, float], Task]] = {
    "arithmetic": lambda rng, _: small_tasks.arithmetic(rng),
    "check": lambda rng, _: small_tasks.check(rng),
    "loop": small_tasks.loop,
    "collection": small_tasks.collection,
    "choice": small_tasks.choice,
}
LIST_STRUCTURES = {family: grid.structures(family) for family, grid in GRIDS.items()}
SYSTEM_LINES = (
    "You are a helpful assistant.",
    "You are a very small language model.",
    "Answer in one sentence.",
    "Be short and clear.",
)


def random_task(rng: random.Random, family: str, *, reserved: bool, strange: float = 0.0) -> Task:
    """Draw a task of the family, with a held-out structure or with another one."""
    while True:
        if family in GRIDS:
            structure = rng.choice(LIST_STRUCTURES[family])
            task = list_task(rng, structure, strange=strange)
        else:
            task = SMALL[family](rng, strange)
        if held_out(task.structure) == reserved:
            return task


def training_task(rng: random.Random, *, strange: float = 0.0) -> Task:
    """Draw a task that is not held out."""
    family = rng.choices(list(FAMILIES), list(FAMILIES.values()))[0]
    return random_task(rng, family, reserved=False, strange=strange)


def chat_text(messages: list[Message], *, think: bool = False) -> str:
    """Render a conversation as the model's template does.

    Args:
        messages: system, user and assistant turns.
        think: True to start each answer with an empty think block.
    """
    block = "<think>\n\n</think>\n\n" if think else ""
    return "".join(
        f"<|im_start|>{message['role']}\n{block if message['role'] == 'assistant' else ''}"
        f"{message['content']}<|im_end|>\n"
        for message in messages
    )


def exchange_messages(question: str, answer: str) -> list[Message]:
    """Return a question and its answer as messages."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


EXPLAIN = (
    "What does this do?",
    "Explain this code.",
    "What does this code do?",
    "Tell me what this does.",
)


def steps_exchange(rng: random.Random) -> list[Message]:
    """Make a coding question with an answer in prose, or code with an explanation."""
    task = training_task(rng, strange=STRANGE)
    question = ask(rng, task)
    if rng.random() < 0.25:
        question = f"{rng.choice(EXPLAIN)}\n{task.answer}"
    return exchange_messages(question, task.steps)


def conversation(rng: random.Random, turn: Callable[[random.Random], list[Message]]) -> str:
    """Make one to three turns, 15 % with a system message and 8 % with empty think blocks."""
    turns = rng.choices([1, 2, 3], [7, 2, 1])[0]
    messages = [message for _ in range(turns) for message in turn(rng)]
    if rng.random() < 0.15:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM_LINES)})
    return chat_text(messages, think=rng.random() < 0.08)


def talk_conversation(rng: random.Random) -> str:
    """Make a conversation of everyday questions and answers."""
    return conversation(rng, lambda rng: exchange_messages(*exchange(rng)))


def steps_conversation(rng: random.Random) -> str:
    """Make a conversation of coding questions with answers in prose."""
    return conversation(rng, steps_exchange)


NOTEBOOKS: tuple[Callable[[str, Task], str], ...] = (
    lambda question, task: f"{question}\n{task.answer}\n",
    lambda question, task: f"Task: {question}\n{task.answer}\n",
    lambda question, task: f"Question: {question}\n\nCode:\n{task.answer}\n",
    lambda question, task: f"Exercise: {question}\nSteps: {task.steps}\n{task.answer}\n",
    lambda question, task: f"{question}\n{task.steps}\n{task.answer}\n",
    lambda question, task: f"{question}\n{task.answer}\n{task.steps}\n",
)


def notebook(rng: random.Random) -> str:
    """Make a page with a question and its code, with or without the steps."""
    task = training_task(rng, strange=STRANGE)
    question = rng.choice([ask(rng, task), ask(rng, task), f"{capitalize_first(task.do)}."])
    return rng.choice(NOTEBOOKS)(question, task)


KINDS_OF_DOCUMENT: dict[Callable[[random.Random], str], int] = {
    notebook: 38,
    steps_conversation: 30,
    talk_conversation: 23,
    story: 5,
    facts: 4,
}


def documents(seed: int = SEED) -> Iterator[str]:
    """Yield the documents of the pre-training text, endlessly."""
    rng = random.Random(f"documents {seed}")
    kinds, weights = list(KINDS_OF_DOCUMENT), list(KINDS_OF_DOCUMENT.values())
    while True:
        yield rng.choices(kinds, weights)[0](rng)


def train_rows(seed: int = SEED) -> list[list[Message]]:
    """Return the fine-tuning rows: coding questions with code, and a few everyday questions."""
    rng = random.Random(f"train {seed}")
    rows: dict[str, str] = {}
    while len(rows) < TRAIN_CODE_ROWS:
        task = training_task(rng)
        rows.setdefault(ask(rng, task), task.answer)
    while len(rows) < TRAIN_CODE_ROWS + TRAIN_TALK_ROWS:
        rows.setdefault(*exchange(rng))
    mixed = list(rows.items())
    rng.shuffle(mixed)
    return [exchange_messages(*row) for row in mixed]


def held_out_tasks(seed: int = SEED) -> list[tuple[str, Task]]:
    """Return questions and tasks with held-out structures, each structure once."""
    rng = random.Random(f"held out {seed}")
    chosen: dict[tuple[str, ...], tuple[str, Task]] = {}
    for family, rows in HELD_OUT_ROWS.items():
        goal = len(chosen) + rows
        while len(chosen) < goal:
            task = random_task(rng, family, reserved=True)
            chosen.setdefault(task.structure, (ask(rng, task), task))
    return list(chosen.values())


def held_out_rows(seed: int = SEED) -> list[list[Message]]:
    """Return the test rows: coding questions with code."""
    return [exchange_messages(question, task.answer) for question, task in held_out_tasks(seed)]


def write_rows(folder: Path, seed: int = SEED) -> None:
    """Write `train.jsonl` and `heldout.jsonl`, one `{"messages": [...]}` per line."""
    for name, rows in (("train", train_rows(seed)), ("heldout", held_out_rows(seed))):
        lines = [json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
