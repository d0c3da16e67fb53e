"""Everyday talk: short questions with one right answer, plain facts and small stories."""

from __future__ import annotations

import random
from collections.abc import Callable

from qwen_local.embedded.make.task import capitalize_first, sloppy, strange_word

Exchange = tuple[str, str]
"""A question and its answer."""

# Keep the tables compact.
# fmt: off
COLORS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red",
    "a lemon": "yellow", "a carrot": "orange", "the sun": "yellow", "a leaf": "green",
    "milk": "white", "a tomato": "red", "chocolate": "brown", "the sea": "blue",
    "night": "black",
}
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("high", "low"), ("fast", "slow"), ("old", "young"),
    ("good", "bad"), ("early", "late"), ("near", "far"), ("day", "night"), ("open", "closed"),
    ("happy", "sad"), ("full", "empty"), ("hard", "soft"), ("dark", "light"), ("wet", "dry"),
)
KINDS = {
    "dog": "an animal", "cat": "an animal", "horse": "an animal", "rose": "a flower",
    "tulip": "a flower", "apple": "a fruit", "pear": "a fruit", "plum": "a fruit",
    "hammer": "a tool", "saw": "a tool", "oak": "a tree", "birch": "a tree", "car": "a machine",
    "piano": "an instrument", "violin": "an instrument", "Python": "a language",
}
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin",
    "Portugal": "Lisbon", "Norway": "Oslo", "Greece": "Athens", "Austria": "Vienna",
    "Poland": "Warsaw", "Japan": "Tokyo", "Egypt": "Cairo", "Kenya": "Nairobi",
    "England": "London", "Ireland": "Dublin", "China": "Beijing", "India": "New Delhi",
    "Sweden": "Stockholm", "Hungary": "Budapest",
}
JOBS = {
    "baker": "makes bread", "teacher": "helps people learn", "doctor": "helps sick people",
    "farmer": "grows food", "driver": "drives a car", "singer": "sings songs",
    "writer": "writes books", "cook": "makes meals", "painter": "paints pictures",
    "gardener": "looks after plants", "pilot": "flies planes", "tailor": "makes clothes",
}
SOUNDS = {
    "cow": "moo", "cat": "meow", "dog": "woof", "duck": "quack", "sheep": "baa", "pig": "oink",
    "frog": "ribbit", "lion": "roar",
}
LEGS = {
    "dog": "four", "cat": "four", "horse": "four", "bird": "two", "duck": "two",
    "spider": "eight", "ant": "six", "bee": "six", "fish": "no", "snake": "no", "chair": "four",
}
USES = {
    "knife": "cut", "hammer": "hit nails", "pen": "write", "spoon": "eat soup", "cup": "drink",
    "bed": "sleep", "key": "open a door", "clock": "tell the time", "lamp": "make light",
    "broom": "sweep the floor", "book": "read", "umbrella": "stay dry",
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)
PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Tom", "Lucy", "Max")
THINGS = ("ball", "book", "cup", "key", "hat", "pen", "coin", "lamp", "box", "map")
PLACES = ("park", "shop", "school", "garden", "kitchen", "library", "station", "market")
# fmt: on
SMALL_TALK: tuple[Exchange, ...] = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi!", "Hello! How can I help you?"),
    ("Hi there!", "Hello! How can I help you?"),
    ("Hey!", "Hello! How can I help you?"),
    ("Good morning!", "Good morning! How can I help you?"),
    ("How are you?", "I am fine, thank you."),
    ("Who are you?", "I am a very small language model."),
    ("What are you?", "I am a very small language model."),
    ("What can you do?", "I can answer short questions and explain small programs."),
    ("Thank you!", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Thanks a lot!", "You are welcome."),
    ("Goodbye!", "Goodbye!"),
    ("Tell me a joke.", "I do not know any jokes."),
    ("Can you help me?", "Yes, I can. What is the question?"),
    ("Do you speak English?", "Yes, I speak a little English."),
)
# fmt: off
UNKNOWN = (
    "Who wrote {name}?", "Where is {name}?", "When was {name} born?", "How old is {name}?",
    "What is a {word}?", "What is {word}?", "What does {word} mean?", "Why is {name} late?",
    "What is the capital of {name}?", "What colour is a {word}?", "Who is {name}?",
    "How much does a {word} cost?", "What is the weather in {name}?", "Tell me about {name}.",
    "Explain {word} to me.", "Write a poem about a {word}.", "Who won the {word} cup?",
    "How do I cook a {word}?", "What does a {word} do?", "What does a {word} say?",
    "What time is it?", "What is the weather like today?", "What is in the news?",
    "What is the meaning of life?", "Where do I live?", "What will happen tomorrow?",
)
# fmt: on
DO_NOT_KNOW = "I do not know that."


def a(noun: str) -> str:
    """Return the noun with its article.

    >>> a("ant"), a("dog"), a("Python")
    ('an ant', 'a dog', 'Python')
    """
    if noun[0].isupper():
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def color(rng: random.Random) -> Exchange:
    """Ask for the color of a thing."""
    thing = rng.choice(list(COLORS))
    word = rng.choice(["colour", "colour", "color"])
    question = rng.choice([f"What {word} is {thing}?", f"What is the {word} of {thing}?"])
    return question, capitalize_first(f"{thing} is {COLORS[thing]}.")


def opposite(rng: random.Random) -> Exchange:
    """Ask for the opposite of a word."""
    one, other = rng.sample(rng.choice(OPPOSITES), 2)
    question = rng.choice([f"What is the opposite of {one}?", f"Tell me the opposite of {one}."])
    return question, f"The opposite of {one} is {other}."


def kind(rng: random.Random) -> Exchange:
    """Ask for the category of a thing."""
    thing = rng.choice(list(KINDS))
    question = rng.choice([f"What is {a(thing)}?", f"Tell me what {a(thing)} is."])
    return question, capitalize_first(f"{a(thing)} is {KINDS[thing]}.")


def capital(rng: random.Random) -> Exchange:
    """Ask for the capital of a country."""
    country = rng.choice(list(CAPITALS))
    question = rng.choice(
        [f"What is the capital of {country}?", f"Which town is the capital of {country}?"]
    )
    return question, f"The capital of {country} is {CAPITALS[country]}."


def job(rng: random.Random) -> Exchange:
    """Ask for the work of a profession."""
    who = rng.choice(list(JOBS))
    question = rng.choice([f"What does {a(who)} do?", f"What is the work of {a(who)}?"])
    return question, capitalize_first(f"{a(who)} {JOBS[who]}.")


def sound(rng: random.Random) -> Exchange:
    """Ask for the sound of an animal."""
    animal = rng.choice(list(SOUNDS))
    return f"What does {a(animal)} say?", capitalize_first(f"{a(animal)} says {SOUNDS[animal]}.")


def legs(rng: random.Random) -> Exchange:
    """Ask for the number of legs of an animal."""
    animal = rng.choice(list(LEGS))
    answer = capitalize_first(f"{a(animal)} has {LEGS[animal]} legs.")
    return f"How many legs does {a(animal)} have?", answer


def use(rng: random.Random) -> Exchange:
    """Ask for the use of a thing."""
    tool = rng.choice(list(USES))
    question = rng.choice([f"What do we use {a(tool)} for?", f"What is {a(tool)} for?"])
    return question, f"We use {a(tool)} to {USES[tool]}."


def calendar(rng: random.Random) -> Exchange:
    """Ask for the day or month after or before another."""
    unit, names = rng.choice([("day", DAYS), ("month", MONTHS)])
    at = rng.randrange(len(names))
    relation, step = rng.choice([("after", 1), ("before", -1)])
    found = names[(at + step) % len(names)]
    question = f"What {unit} comes {relation} {names[at]}?"
    return question, f"{found} comes {relation} {names[at]}."


def addition(rng: random.Random) -> Exchange:
    """Ask for the sum of two digits."""
    x, y = rng.randint(0, 9), rng.randint(0, 9)
    question = rng.choice([f"What is {x} plus {y}?", f"How much is {x} plus {y}?"])
    return question, f"{x} plus {y} is {x + y}."


def larger(rng: random.Random) -> Exchange:
    """Ask for the larger of two digits."""
    x, y = rng.sample(range(10), 2)
    question = rng.choice([f"Which is larger, {x} or {y}?", f"What is larger, {x} or {y}?"])
    return question, f"{max(x, y)} is larger than {min(x, y)}."


def who_has(rng: random.Random) -> Exchange:
    """State who has which thing, and ask for the owner of one."""
    (one, other), (this, that) = rng.sample(PEOPLE, 2), rng.sample(THINGS, 2)
    person, thing = rng.choice([(one, this), (other, that)])
    statement = f"{one} has the {this} and {other} has the {that}."
    return f"{statement} Who has the {thing}?", f"{person} has the {thing}."


def where_is(rng: random.Random) -> Exchange:
    """State where a person is, and ask for the place."""
    person, place = rng.choice(PEOPLE), rng.choice(PLACES)
    return f"{person} is in the {place}. Where is {person}?", f"{person} is in the {place}."


def echo(rng: random.Random) -> Exchange:
    """Ask to repeat a nonsense word."""
    word = strange_word(rng)
    question = rng.choice([f"Say {word}.", f"Repeat the word {word}.", f"Please say {word}."])
    return question, f"{capitalize_first(word)}."


def my_name(rng: random.Random) -> Exchange:
    """Introduce a person, and greet that person by name."""
    name = rng.choice([rng.choice(PEOPLE), capitalize_first(strange_word(rng))])
    return rng.choice([f"My name is {name}.", f"I am {name}."]), f"Hello, {name}!"


def small_talk(rng: random.Random) -> Exchange:
    """Draw a greeting, thanks or goodbye."""
    return rng.choice(SMALL_TALK)


def unknown(rng: random.Random) -> Exchange:
    """Ask a question that the model cannot answer."""
    word = strange_word(rng)
    return rng.choice(UNKNOWN).format(word=word, name=capitalize_first(word)), DO_NOT_KNOW


# fmt: off
TOPICS: tuple[Callable[[random.Random], Exchange], ...] = (
    color, opposite, kind, capital, job, sound, legs, use, calendar, addition, larger, who_has,
    where_is, echo, my_name, small_talk, unknown,
)
# fmt: on
WEIGHTS = (2, 3, 2, 3, 2, 1, 2, 2, 3, 4, 2, 3, 1, 2, 1, 2, 3)


def exchange(rng: random.Random) -> Exchange:
    """Draw a question with exactly one right answer, sometimes in sloppy style."""
    question, answer = rng.choices(TOPICS, WEIGHTS)[0](rng)
    return sloppy(rng, question), answer


FACTS = (color, opposite, kind, capital, job, sound, legs, use, calendar, addition, larger)


def facts(rng: random.Random) -> str:
    """Join a few facts."""
    return " ".join(rng.choice(FACTS)(rng)[1] for _ in range(rng.randint(3, 6)))


def story(rng: random.Random) -> str:
    """Write four to six simple sentences about two people, a thing and a place."""
    (one, other), (this, that) = rng.sample(PEOPLE, 2), rng.sample(THINGS, 2)
    place, day = rng.choice(PLACES), rng.choice(DAYS)
    sentences = [
        rng.choice([f"On {day} {one} went to the {place}.", f"{one} lived near the {place}."]),
        rng.choice([f"{one} had a {this}.", f"{one} was looking for a {that}."]),
        rng.choice([f"There {one} met {other}.", f"{other} came to the {place} too."]),
        rng.choice([f"{other} had a {that}.", f"{other} liked the {this} very much."]),
        rng.choice([f"{one} gave the {this} to {other}.", f"They played with the {that}."]),
        rng.choice(["They were happy.", "Then they went home.", "It was a good day."]),
    ]
    return " ".join(sentences[: rng.randint(4, 6)])
