"""One thing to program, in words and in Python, and the ways to ask for it."""

from __future__ import annotations

import keyword
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

Structure = tuple[str, ...]
"""A family, then the parts that make a task what it is; the hold-out rule is about these."""


LETTERS = tuple("abcdefghilmnoprstw")
"""Letters that tasks on words ask for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One thing to program. The words decide the code whole, function name included.

    Attributes:
        structure: what is held out or not; tasks may share it and differ in nouns or letters.
        thing: what is asked for, such as `a function`.
        words: what it does, each verb marked: `~sum the even prices in a list`.
        steps: how it is done, in prose.
        code: how it is done, in Python, without a final line break.
    """

    structure: Structure
    thing: str = "a function"
    words: str
    steps: str
    code: str

    @property
    def do(self) -> str:
        """`sum the even prices in a list`."""
        return self.words.replace("~", "")

    @property
    def does(self) -> str:
        """`sums the even prices in a list`."""
        return re.sub(r"~(\w+)", lambda verb: third_person(verb[1]), self.words)

    @property
    def answer(self) -> str:
        """The code in a fence: what fine-tuning teaches the assistant to write."""
        return f"```python\n{self.code}\n```"


def third_person(verb: str) -> str:
    """The form after he, she or it.

    >>> [third_person(verb) for verb in ("sum", "multiply")]
    ['sums', 'multiplies']
    """
    return f"{verb[:-1]}ies" if verb.endswith("ly") else f"{verb}s"


WAYS_TO_ASK: tuple[Callable[[Task], str], ...] = (
    lambda task: f"Write {task.thing} that {task.does}.",
    lambda task: f"Create {task.thing} that {task.does}.",
    lambda task: f"I need {task.thing} that {task.does}.",
    lambda task: f"Please write {task.thing} to {task.do}.",
    lambda task: f"Can you write {task.thing} that {task.does}?",
    lambda task: f"Could you show me {task.thing} to {task.do}, please?",
    lambda task: f"How do I {task.do} in Python?",
    lambda task: f"How can I {task.do}?",
    lambda task: f"Show me how to {task.do}.",
    lambda task: f"I want to {task.do}. What do I write?",
    lambda task: f"{capitalised(task.do)}.",
)


def ask(rng: random.Random, task: Task) -> str:
    """A question for the task, now and then in a hurry (no capital, no full stop)."""
    return hurried(rng, rng.choice(WAYS_TO_ASK)(task))


def hurried(rng: random.Random, sentence: str) -> str:
    """The sentence, in one case of eight without its capital or its last mark."""
    if rng.random() < 0.125:
        if not sentence.startswith("I "):
            sentence = sentence[0].lower() + sentence[1:]
        sentence = sentence.rstrip(".?!")
    return sentence


def capitalised(text: str) -> str:
    """The text with its first letter as a capital, the others as they are."""
    return text[:1].upper() + text[1:]


def sentence_list(items: list[str]) -> str:
    """The items as a sentence has them.

    >>> sentence_list(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


STARTS = ("b", "bl", "d", "f", "g", "gr", "k", "m", "n", "pl", "r", "t", "v", "z")


def strange_word(rng: random.Random) -> str:
    """A word that means nothing, so that copying is learned and not only known words."""
    word = "for"  # a word of Python would make code that does not run
    while keyword.iskeyword(word):
        syllables = rng.randint(1, 2)
        start = "".join(rng.choice(STARTS) + rng.choice("aeiou") for _ in range(syllables))
        word = start + rng.choice("bdgklmnrtvz")
    return word
