"""A programming task in words and in Python, and the ways to ask for it."""

from __future__ import annotations

import keyword
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

Structure = tuple[str, ...]
"""Family and parts of a task; the hold-out rule is defined on these."""


LETTERS = tuple("abcdefghilmnoprstw")
"""Letters that occur in tasks on words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A programming task. The words determine the code completely, including function names.

    Attributes:
        structure: the unit that is held out; tasks can share it and differ in nouns or letters.
        thing: the requested thing, such as `a function`.
        words: description with a mark before each verb: `~sum the even prices in a list`.
        steps: solution in prose.
        code: solution in Python, without a final line break.
    """

    structure: Structure
    thing: str = "a function"
    words: str
    steps: str
    code: str

    @property
    def do(self) -> str:
        """Description in base form: `sum the even prices in a list`."""
        return self.words.replace("~", "")

    @property
    def does(self) -> str:
        """Description in third person: `sums the even prices in a list`."""
        return re.sub(r"~(\w+)", lambda verb: third_person(verb[1]), self.words)

    @property
    def answer(self) -> str:
        """Code in a fence: the answer that fine-tuning teaches."""
        return f"```python\n{self.code}\n```"


def third_person(verb: str) -> str:
    """Return the third-person form of a verb.

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
    lambda task: f"{capitalize_first(task.do)}.",
)


def ask(rng: random.Random, task: Task) -> str:
    """Draw a question for the task, sometimes in sloppy style (no capital, no period)."""
    return sloppy(rng, rng.choice(WAYS_TO_ASK)(task))


def sloppy(rng: random.Random, sentence: str) -> str:
    """Return the sentence, with probability 1/8 without its capital and final punctuation."""
    if rng.random() < 0.125:
        if not sentence.startswith("I "):
            sentence = sentence[0].lower() + sentence[1:]
        sentence = sentence.rstrip(".?!")
    return sentence


def capitalize_first(text: str) -> str:
    """Capitalize the first letter and leave the others unchanged."""
    return text[:1].upper() + text[1:]


def sentence_list(items: list[str]) -> str:
    """Join the items as in a sentence.

    >>> sentence_list(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


STARTS = ("b", "bl", "d", "f", "g", "gr", "k", "m", "n", "pl", "r", "t", "v", "z")


def strange_word(rng: random.Random) -> str:
    """Make a nonsense word, so that the model learns copying and not only known words."""
    word = "for"  # a Python keyword would make code that does not run
    while keyword.iskeyword(word):
        syllables = rng.randint(1, 2)
        start = "".join(rng.choice(STARTS) + rng.choice("aeiou") for _ in range(syllables))
        word = start + rng.choice("bdgklmnrtvz")
    return word
