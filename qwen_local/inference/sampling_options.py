"""How answers are drawn: as the model's generation_config.json says, unless flags say otherwise."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qwen_local.backends.base import Sampling
from qwen_local.datasets.faults import found
from qwen_local.errors import Fault, InputError, ModelError

FILE = "generation_config.json"
SEEDS = 2**31


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the user asks for; None leaves it to the model. See `Sampling`."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    greedy: bool = False
    """Always the likeliest token, whatever the model would have."""
    seed: int | None = None
    """None: another one each time."""


GREEDY = Wishes(greedy=True)

Allowed = tuple[Callable[[float], bool], str]
ALLOWED: dict[str, Allowed] = {
    "temperature": (lambda t: t == 0 or 0.01 <= t <= 100, "0, or a number from 0.01 to 100"),
    "top_p": (lambda p: 0 < p <= 1, "a number above 0 and at most 1"),
    "top_k": (lambda k: type(k) is int and 0 <= k < 2**31, "a whole number, 0 for all tokens"),
    "min_p": (lambda p: 0 <= p <= 1, "a number from 0 to 1"),
    "repetition_penalty": (lambda p: 0.01 <= p <= 100, "a number from 0.01 to 100"),
}
NARROWING = ("top_p", "top_k", "min_p")
"""Settings that mean something only where there is a draw."""


def sampling_defaults(folder: Path, name: str) -> Sampling:
    """What a model's generation_config.json says.

    Where it does not ask for draws (`do_sample`), or is not there, the likeliest token is taken. A
    setting that it leaves out narrows nothing.

    Args:
        folder: of the model.
        name: the model, as messages name it.

    Raises:
        ModelError: a value is malformed; all of them at once.
    """
    config, where = generation_config(folder, name), f"{name}: {FILE}"
    given = {key: config[key] for key in ALLOWED if config.get(key) is not None}
    faults = [
        Fault(f"{where}: {key}", problem, MODEL_HINT)
        for key, value in given.items()
        if (problem := _problem(key, value))
    ]
    draws = config.get("do_sample")
    if draws not in (None, True, False):
        problem = f"expected true or false; found {found(draws)}"
        faults.append(Fault(f"{where}: do_sample", problem, MODEL_HINT))
    if faults:
        raise ModelError(faults)
    if not draws:
        given = {key: given[key] for key in given if key == "repetition_penalty"}
    return Sampling(**{"temperature": 1.0 if draws else 0.0, **given})


def generation_config(folder: Path, name: str) -> dict[str, Any]:
    """The content of a model's generation_config.json; nothing where there is none.

    Raises:
        ModelError: it is no JSON object.
    """
    path, where = folder / FILE, f"{name}: {FILE}"
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError.at(where, f"not readable as JSON: {error}", MODEL_HINT) from None
    if not isinstance(config, dict):
        raise ModelError.at(where, f"expected an object; found {found(config)}", MODEL_HINT)
    return config


MODEL_HINT = "take the file from the model's page on the hub, or remove it"


def check_wishes(wishes: Wishes) -> None:
    """Refuse flags that are out of range or exclude each other, before anything is loaded.

    Raises:
        InputError: every fault at once.
    """
    if faults := list(_faults(wishes)):
        raise InputError(faults)


def _faults(wishes: Wishes) -> Iterator[Fault]:
    for key in ALLOWED:
        value = getattr(wishes, key)
        if value is not None and (problem := _problem(key, value)):
            yield Fault(_flag(key), problem, HINTS[key])
    if wishes.seed is not None and not 0 <= wishes.seed < SEEDS:
        yield Fault("--seed", f"expected 0 to {SEEDS - 1}; found {wishes.seed}")
    if wishes.greedy and wishes.temperature:
        problem = "takes the likeliest token, and --temperature draws"
        yield Fault("--greedy", problem, "leave one of them out")


HINTS = {
    "temperature": "it flattens the odds; for example 0.7, and 0 for the likeliest token",
    "top_p": "it keeps the likeliest tokens that together have this probability; for example 0.9",
    "top_k": "it keeps this many tokens; for example 20",
    "min_p": "it keeps tokens at least this share as likely as the likeliest; for example 0.05",
    "repetition_penalty": "it makes what was said less likely; for example 1.05, and 1 for none",
}


def choose_sampling(defaults: Sampling, wishes: Wishes) -> Sampling:
    """The model's settings with the user's in their place.

    Raises:
        InputError: a flag would have no effect, because nothing is drawn.
    """
    given = {k: v for k, v in asdict(wishes).items() if v is not None and k != "greedy"}
    given.setdefault("seed", secrets.randbelow(SEEDS))
    if wishes.greedy:
        given["temperature"] = 0.0
    sampling = replace(defaults, **given)
    if sampling.temperature == 0:
        mend = "add --temperature, for example --temperature 0.7"
        if wishes.greedy or wishes.temperature == 0:
            mend = "leave it out"
        faults = [
            Fault(_flag(key), "has no effect where the likeliest token is taken", mend)
            for key in NARROWING
            if key in given
        ]
        if faults:
            raise InputError(faults)
    return sampling


def describe(sampling: Sampling) -> str:
    """The settings in force, in words.

    >>> describe(Sampling())
    'the likeliest token each time'
    >>> describe(Sampling(temperature=0.6, top_k=20, seed=7))
    'temperature 0.6, top-k 20, seed 7'
    """
    plain = Sampling()
    keys = [*ALLOWED, "seed"] if sampling.temperature > 0 else ["repetition_penalty"]
    values = {key: getattr(sampling, key) for key in keys}
    said = [
        f"{key.replace('_penalty', ' penalty').replace('_', '-')} {value:g}"
        if key != "seed"
        else f"seed {value}"
        for key, value in values.items()
        if key == "seed" or value != getattr(plain, key)
    ]
    greedy = [] if sampling.temperature > 0 else ["the likeliest token each time"]
    return ", ".join([*greedy, *said])


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _problem(key: str, value: Any) -> str | None:
    """What is wrong with a value, or None."""
    allowed, wanted = ALLOWED[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if number and allowed(value) else f"expected {wanted}; found {found(value)}"
