"""Tasks on lists: filter the items, change each one, combine them.

The three choices are the structure; the noun, the number and the letter vary.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass

from qwen_local.embedded.make.task import LETTERS, Structure, Task, strange_word


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Filter of the items. `{k}` is the varying number or letter, `{v}` the loop variable."""

    before: str = ""
    after: str = ""
    test: str = ""
    step: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Change of each item: its name (the plural adds an s), code and step."""

    name: str = ""
    code: str = "{v}"
    step: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gather:
    """Combination of the items. `singular`: the name has one item, as in `largest_price`."""

    words: tuple[str, ...]
    name: str
    code: str
    step: str
    singular: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A family of list tasks: all useful combinations of filter, change and combination."""

    nouns: tuple[str, ...]
    free: Mapping[str, tuple[str, ...]]
    keeps: Mapping[str, Keep]
    changes: Mapping[str, Change]
    gathers: Mapping[str, Gather]
    useless: frozenset[tuple[str, str]]

    def structures(self, family: str) -> list[Structure]:
        """Return all structures of the family."""
        return [
            (family, keep, change, gather)
            for keep, change, gather in itertools.product(self.keeps, self.changes, self.gathers)
            if (change, gather) not in self.useless
            and (keep, change, gather) != ("all", "same", "list")
        ]


# Tables read better in rows.
# fmt: off
NUMBER_NOUNS = (
    "numbers", "prices", "scores", "ages", "heights", "days", "weights", "points", "marks",
    "times", "costs", "years", "votes", "goals",
)
WORD_NOUNS = (
    "words", "names", "towns", "animals", "fruits", "songs", "books", "teams", "friends",
    "games", "jobs", "rivers", "plants", "colours",
)
# fmt: on

NUMBERS = Grid(
    nouns=NUMBER_NOUNS,
    free={
        "above": tuple(map(str, range(2, 100))),
        "below": tuple(map(str, range(2, 100))),
        "not": tuple(map(str, range(2, 100))),
        "divisible": tuple(map(str, range(3, 10))),
    },
    keeps={
        "all": Keep(),
        "even": Keep(before="even ", test="{v} % 2 == 0", step="keep the even ones"),
        "odd": Keep(before="odd ", test="{v} % 2 == 1", step="keep the odd ones"),
        "positive": Keep(before="positive ", test="{v} > 0", step="keep the positive ones"),
        "negative": Keep(before="negative ", test="{v} < 0", step="keep the negative ones"),
        "above": Keep(after=" above {k}", test="{v} > {k}", step="keep those above {k}"),
        "below": Keep(after=" below {k}", test="{v} < {k}", step="keep those below {k}"),
        "not": Keep(after=" other than {k}", test="{v} != {k}", step="leave out every {k}"),
        "divisible": Keep(
            after=" divisible by {k}", test="{v} % {k} == 0", step="keep those divisible by {k}"
        ),
    },
    changes={
        "same": Change(),
        "square": Change(name="square", code="{v} * {v}", step="square each one"),
        "cube": Change(name="cube", code="{v} ** 3", step="cube each one"),
        "double": Change(name="double", code="{v} * 2", step="double each one"),
        "third": Change(name="third", code="{v} / 3", step="divide each one by three"),
        "opposite": Change(name="opposite", code="-{v}", step="change the sign of each one"),
    },
    gathers={
        "list": Gather(
            words=("~list", "~collect"), name="list", code="[{}]", step="put them in a list"
        ),
        "sum": Gather(words=("~sum", "~add up"), name="sum", code="sum({})", step="add them up"),
        "largest": Gather(
            words=("~find the largest of", "~find the biggest of"),
            name="largest",
            code="max({})",
            step="take the largest one",
            singular=True,
        ),
        "smallest": Gather(
            words=("~find the smallest of", "~find the lowest of"),
            name="smallest",
            code="min({})",
            step="take the smallest one",
            singular=True,
        ),
        "sort": Gather(
            words=("~sort", "~order"), name="sort", code="sorted({})", step="put them in order"
        ),
        "count": Gather(words=("~count",), name="count", code="len([{}])", step="count them"),
    },
    useless=frozenset(
        (change, "count") for change in ("square", "cube", "double", "third", "opposite")
    ),
)

WORDS = Grid(
    nouns=WORD_NOUNS,
    free={
        "starting": LETTERS,
        "ending": LETTERS,
        "containing": LETTERS,
        "letters": tuple(map(str, range(3, 10))),
    },
    keeps={
        "all": Keep(),
        "short": Keep(before="short ", test="len({v}) < 5", step="keep the short ones"),
        "long": Keep(before="long ", test="len({v}) > 7", step="keep the long ones"),
        "starting": Keep(
            after=" starting with {k}",
            test='{v}.startswith("{k}")',
            step="keep those that start with {k}",
        ),
        "ending": Keep(
            after=" ending with {k}",
            test='{v}.endswith("{k}")',
            step="keep those that end with {k}",
        ),
        "containing": Keep(
            after=" containing {k}", test='"{k}" in {v}', step="keep those that contain {k}"
        ),
        "letters": Keep(
            after=" of {k} letters", test="len({v}) == {k}", step="keep those of {k} letters"
        ),
    },
    changes={
        "same": Change(),
        "first": Change(name="first letter", code="{v}[0]", step="take the first letter of each"),
        "last": Change(name="last letter", code="{v}[-1]", step="take the last letter of each"),
        "length": Change(name="length", code="len({v})", step="take the length of each"),
        "reverse": Change(name="reverse", code="{v}[::-1]", step="turn each one round"),
    },
    gathers={
        "list": Gather(
            words=("~list", "~collect"), name="list", code="[{}]", step="put them in a list"
        ),
        "sort": Gather(
            words=("~sort", "~order"), name="sort", code="sorted({})", step="put them in order"
        ),
        "set": Gather(
            words=("~make a set of", "~get a set of"),
            name="set of",
            code="set({})",
            step="put them in a set",
        ),
        "join": Gather(
            words=("~join",), name="join", code='" ".join({})', step="join them with spaces"
        ),
        "count": Gather(words=("~count",), name="count", code="len([{}])", step="count them"),
    },
    useless=frozenset(
        {("length", "join")}
        | {(change, "count") for change in ("first", "last", "length", "reverse")}
    ),
)

GRIDS: Mapping[str, Grid] = {"numbers": NUMBERS, "words": WORDS}


def list_task(rng: random.Random, structure: Structure, *, strange: float) -> Task:
    """Make a task with this structure and a random noun, number or letter.

    Args:
        rng: source of randomness.
        structure: family, keep, change, gather.
        strange: fraction of tasks with a nonsense word as noun.
    """
    family, keep_key, change_key, gather_key = structure
    grid = GRIDS[family]
    keep, change, gather = (
        grid.keeps[keep_key],
        grid.changes[change_key],
        grid.gathers[gather_key],
    )
    noun = f"{strange_word(rng)}s" if rng.random() < strange else rng.choice(grid.nouns)
    k = rng.choice(grid.free.get(keep_key, ("",)))
    v = noun[0]
    after = keep.after.format(k=k)
    kept, one_kept = (f"{keep.before}{form}{after}" for form in (noun, noun[:-1]))
    if change.name:
        what = f"{change.name}s of the {kept}"
        named = f"{change.name if gather.singular else change.name + 's'} of {kept}"
    else:
        what, named = kept, one_kept if gather.singular else kept
    words = f"{rng.choice(gather.words)} the {what} in a list"
    if gather.singular and not change.name and rng.random() < 0.5:
        words = words.replace(f"of the {kept}", one_kept)  # the largest price above 5
    name = f"{gather.name} {named}".replace(" ", "_")

    items = f"{change.code} for {{v}} in {{noun}}" + (f" if {keep.test}" if keep.test else "")
    items = items.format(v=v, k=k, noun=noun)
    if keep_key == "all" and change_key == "same":
        items = noun  # sum(prices), not sum(p for p in prices)
    gathered = gather.code.format(items).replace(f"[{noun}]", noun)

    steps = [step.format(k=k) for step in (keep.step, change.step) if step]
    return Task(
        structure=structure,
        words=words,
        steps=f"{', '.join([f'Go through the {noun}', *steps])} and {gather.step}.",
        code=f"def {name}({noun}):\n    return {gathered}",
    )
