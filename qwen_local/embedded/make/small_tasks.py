"""Small tasks: arithmetic, checks, loops, collections and choices.

Here the numbers and words in the slots are part of the structure, because there is little else.
`strange` is the fraction of nonsense words.
"""

from __future__ import annotations

import random

from qwen_local.embedded.make.task import LETTERS, Task, sentence_list, strange_word

FIRST_STEP = {
    "add": "~add {k} to a number",
    "subtract": "~subtract {k} from a number",
    "multiply": "~multiply a number by {k}",
    "divide": "~divide a number by {k}",
}
LATER_STEP = {
    "add": "add {k}",
    "subtract": "subtract {k}",
    "multiply": "multiply by {k}",
    "divide": "divide by {k}",
}
SIGN = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}


def arithmetic(rng: random.Random) -> Task:
    """Make a function with one or two arithmetic operations on a number."""
    first, second = rng.choice(list(SIGN)), rng.choice([*SIGN, *SIGN, ""])
    a, b = str(rng.randint(2, 20)), str(rng.randint(2, 20))
    words = FIRST_STEP[first].format(k=a)
    steps = LATER_STEP[first].format(k=a)
    result = f"n {SIGN[first]} {a}"
    if not second:
        return Task(
            structure=("arithmetic", first, a),
            words=words,
            steps=f"Take the number and {steps}.",
            code=f"def {steps.replace(' ', '_')}(n):\n    return {result}",
        )
    then = LATER_STEP[second].format(k=b)
    if SIGN[first] in "+-" and SIGN[second] in "*/":
        result = f"({result})"
    name = f"{steps} and {then}".replace(" ", "_")
    return Task(
        structure=("arithmetic", first, a, second, b),
        words=f"{words} and then ~{then}",
        steps=f"Take the number, {steps} and then {then}.",
        code=f"def {name}(n):\n    return {result} {SIGN[second]} {b}",
    )


NUMBER_CHECKS = {
    "is above": "n > {k}",
    "is below": "n < {k}",
    "is divisible by": "n % {k} == 0",
    "is not": "n != {k}",
}
WORD_CHECKS = {
    "starts with": 'word.startswith("{k}")',
    "ends with": 'word.endswith("{k}")',
    "contains": '"{k}" in word',
}


def check(rng: random.Random) -> Task:
    """Make a function that returns True or False for a number or a word."""
    kind = rng.choice([*NUMBER_CHECKS, "is between", "is between", *WORD_CHECKS])
    if kind in WORD_CHECKS:
        subject, v = "word", "word"
        values = [rng.choice(LETTERS) + rng.choice(["", "", *"aeiou"])]
        test = WORD_CHECKS[kind].format(k=values[0])
    else:
        subject, v = "number", "n"
        values = [str(rng.randint(2, 60))]
        if kind == "is between":
            values.append(str(int(values[0]) + rng.randint(2, 30)))
            test = f"{values[0]} < n < {values[1]}"
        else:
            test = NUMBER_CHECKS[kind].format(k=values[0])
    what = f"{kind} {' and '.join(values)}"
    return Task(
        structure=("check", kind, *values),
        words=f"~check {rng.choice(['that', 'if', 'whether'])} a {subject} {what}",
        steps=f"Take the {subject} and see if it {what}.",
        code=f"def {what.replace(' ', '_')}({v}):\n    return {test}",
    )


# Tables read better in rows.
# fmt: off
PRINTED = (
    "hello", "yes", "no", "thanks", "sorry", "wait", "go", "stop", "good", "welcome", "morning",
    "night", "ready", "done", "help",
)
# fmt: on
EACH = {
    "{}": "{}",
    "the length of {}": "len({})",
    "the first letter of {}": "{}[0]",
    "the last letter of {}": "{}[-1]",
}
# fmt: off
THINGS = (
    "name", "word", "town", "animal", "fruit", "song", "book", "team", "friend", "game",
    "job", "river", "plant", "colour",
)
# fmt: on


def loop(rng: random.Random, strange: float) -> Task:
    """Make a loop that prints: counting up, counting down, a repeated word, or a list."""
    kind = rng.choice(["up", "down", "again", "each"])
    if kind == "up":
        first = rng.randint(1, 9)
        last = first + rng.randint(2, 20)
        return Task(
            structure=("loop", "up", str(first), str(last)),
            thing="a loop",
            words=f"~print the numbers from {first} to {last}",
            steps=f"Start at {first}, go up to {last} and print each number.",
            code=f"for i in range({first}, {last + 1}):\n    print(i)",
        )
    if kind == "down":
        first, last = rng.randint(10, 60), rng.randint(2, 9)
        return Task(
            structure=("loop", "down", str(first), str(last)),
            thing="a loop",
            words=f"~count down from {first} to {last}",
            steps=f"Start at {first}, go down to {last} and print each number.",
            code=f"for i in range({first}, {last - 1}, -1):\n    print(i)",
        )
    if kind == "again":
        word = strange_word(rng) if rng.random() < strange else rng.choice(PRINTED)
        times = rng.randint(2, 20)
        return Task(
            structure=("loop", "again", word, str(times)),
            thing="a loop",
            words=f"~print {word} {times} times",
            steps=f"Print the word {word} and do it again until you have done it {times} times.",
            code=f'for _ in range({times}):\n    print("{word}")',
        )
    thing = strange_word(rng) if rng.random() < strange else rng.choice(THINGS)
    what = rng.choice(list(EACH))
    return Task(
        structure=("loop", "each", what, thing),
        thing="a loop",
        words=f"~print {what.format(f'each {thing}')} in a list",
        steps=f"Go through the {thing}s and print {what.format(f'each {thing}')}.",
        code=f"for {thing} in {thing}s:\n    print({EACH[what].format(thing)})",
    )


GROUPS = {
    "pets": ("cat", "dog", "bird", "fish", "mouse", "horse", "rabbit"),
    "colours": ("red", "blue", "green", "white", "black", "yellow", "brown"),
    "fruits": ("apple", "pear", "plum", "lemon", "orange", "cherry", "peach"),
    "towns": ("Rome", "Paris", "London", "Berlin", "Madrid", "Lisbon", "Oslo"),
    "tools": ("knife", "hammer", "saw", "spoon", "fork", "needle", "brush"),
    "people": ("Anna", "Ben", "Clara", "David", "Emma", "Tom", "Lucy", "Max"),
}
AMOUNTS = ("ages", "prices", "scores", "heights", "weights", "points", "marks", "goals")


def collection(rng: random.Random, strange: float) -> Task:
    """Make a list of words, a list of numbers, or a dictionary of people and numbers."""
    kind = rng.choice(["words", "numbers", "dictionary"])
    size = rng.choice([2, 2, 3])
    name = rng.choice(AMOUNTS)
    numbers = [str(number) for number in rng.sample(range(1, 40), size)]
    if kind == "words":
        name = rng.choice(list(GROUPS))
        items = rng.sample(GROUPS[name], size)
        if rng.random() < strange:
            items[0] = strange_word(rng)
        shown = [f'"{item}"' for item in items]
    elif kind == "numbers":
        items = shown = numbers
    else:
        people = rng.sample(GROUPS["people"], size)
        items = [f"{person} {number}" for person, number in zip(people, numbers, strict=True)]
        shown = [f'"{person}": {number}' for person, number in zip(people, numbers, strict=True)]
    if rng.random() < strange:
        name = strange_word(rng)
    holder, brackets = ("dictionary", "{}") if kind == "dictionary" else ("list", "[]")
    content = sentence_list(items)
    return Task(
        structure=("collection", kind, name, *items),
        thing="a line of Python",
        words=f"~make a {holder} called {name} with {content}",
        steps=f"Take a new {holder}, put {content} in it and call it {name}.",
        code=f"{name} = {brackets[0]}{', '.join(shown)}{brackets[1]}",
    )


MEASURES = (
    "temperature",
    "age",
    "price",
    "speed",
    "score",
    "height",
    "weight",
    "time",
    "distance",
)
# fmt: off
VERDICTS = (
    "warm", "cold", "big", "small", "high", "low", "fast", "slow", "old", "young", "yes", "no",
    "stop", "go", "good", "bad", "early", "late", "near", "far",
)
# fmt: on


def choice(rng: random.Random, strange: float) -> Task:
    """Make an if-else that prints one word or another."""
    measure = strange_word(rng) if rng.random() < strange else rng.choice(MEASURES)
    relation, sign = rng.choice([("above", ">"), ("below", "<")])
    limit = str(rng.randint(2, 99))
    yes, no = rng.sample(VERDICTS, 2)
    return Task(
        structure=("choice", measure, relation, limit, yes, no),
        thing="an if",
        words=f"~print {yes} if the {measure} is {relation} {limit} and {no} if not",
        steps=f"If the {measure} is {relation} {limit}, print {yes}, or else print {no}.",
        code=f'if {measure} {sign} {limit}:\n    print("{yes}")\nelse:\n    print("{no}")',
    )
