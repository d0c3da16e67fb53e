"""Sampling options: those of the model's generation_config.json, which the caller can override."""

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
class SamplingOptions:
    """Options of the caller; None takes the value of the model. See `Sampling`."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    greedy: bool = False
    """True to take the most probable token, even if the model's file sets a temperature."""
    seed: int | None = None
    """None for a random seed."""


GREEDY = SamplingOptions(greedy=True)

Allowed = tuple[Callable[[float], bool], str]
ALLOWED: dict[str, Allowed] = {
    "temperature": (lambda t: t == 0 or 0.01 <= t <= 100, "0, or a number from 0.01 to 100"),
    "top_p": (lambda p: 0 < p <= 1, "a number above 0 and at most 1"),
    "top_k": (lambda k: type(k) is int and 0 <= k < 2**31, "a whole number, 0 for all tokens"),
    "min_p": (lambda p: 0 <= p <= 1, "a number from 0 to 1"),
    "repetition_penalty": (lambda p: 0.01 <= p <= 100, "a number from 0.01 to 100"),
}
NARROWING = ("top_p", "top_k", "min_p")
"""Options that have an effect only if the temperature is above 0."""


def sampling_defaults(folder: Path, name: str) -> Sampling:
    """Read the sampling settings in a model's generation_config.json.

    Greedy without this file, or without `do_sample: true` in it. A missing setting has no effect.

    Args:
        folder: folder of the model.
        name: name of the model in messages.

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
    samples = config.get("do_sample")
    if samples not in (None, True, False):
        problem = f"expected true or false; found {found(samples)}"
        faults.append(Fault(f"{where}: do_sample", problem, MODEL_HINT))
    if faults:
        raise ModelError(faults)
    if not samples:
        given = {key: given[key] for key in given if key == "repetition_penalty"}
    return Sampling(**{"temperature": 1.0 if samples else 0.0, **given})


def generation_config(folder: Path, name: str) -> dict[str, Any]:
    """Return the content of a model's generation_config.json; empty if there is none.

    Raises:
        ModelError: it is not a JSON object.
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


def check_options(options: SamplingOptions) -> None:
    """Reject options that are out of range or exclude each other, before anything is loaded.

    Raises:
        InputError: all faults.
    """
    if faults := list(_faults(options)):
        raise InputError(faults)


def _faults(options: SamplingOptions) -> Iterator[Fault]:
    for key in ALLOWED:
        value = getattr(options, key)
        if value is not None and (problem := _problem(key, value)):
            yield Fault(key, problem, HINTS[key])
    if options.seed is not None and not 0 <= options.seed < SEEDS:
        yield Fault("seed", f"expected 0 to {SEEDS - 1}; found {options.seed}")
    if options.greedy and options.temperature:
        yield Fault("greedy", "cannot be combined with `temperature`", "leave one of them out")


HINTS = {
    "temperature": "higher values make answers more random; for example 0.7, or 0 for greedy",
    "top_p": "sample from the most probable tokens with this total probability; for example 0.9",
    "top_k": "sample from this many tokens; for example 20",
    "min_p": "minimum probability of a token relative to the most probable one; for example 0.05",
    "repetition_penalty": "makes earlier tokens less probable; for example 1.05, or 1 for none",
}


def choose_sampling(defaults: Sampling, options: SamplingOptions) -> Sampling:
    """Override the model's settings with the caller's options.

    Raises:
        InputError: an option has no effect because the answers are greedy.
    """
    given = {k: v for k, v in asdict(options).items() if v is not None and k != "greedy"}
    given.setdefault("seed", secrets.randbelow(SEEDS))
    if options.greedy:
        given["temperature"] = 0.0
    sampling = replace(defaults, **given)
    if sampling.temperature == 0:
        hint = "also set `temperature`, for example `temperature=0.7`"
        if options.greedy or options.temperature == 0:
            hint = "leave it out"
        faults = [
            Fault(key, "has no effect: the answers are greedy", hint)
            for key in NARROWING
            if key in given
        ]
        if faults:
            raise InputError(faults)
    return sampling


def describe(sampling: Sampling) -> str:
    """Format the settings in words.

    >>> describe(Sampling())
    'greedy'
    >>> describe(Sampling(temperature=0.6, top_k=20, seed=7))
    'temperature 0.6, top-k 20, seed 7'
    """
    neutral = Sampling()
    samples = sampling.temperature > 0
    parts = [] if samples else ["greedy"]
    for key in ALLOWED if samples else ["repetition_penalty"]:
        value = getattr(sampling, key)
        if value != getattr(neutral, key):
            name = key.replace("_penalty", " penalty").replace("_", "-")
            parts.append(f"{name} {value:g}")
    return ", ".join([*parts, *([f"seed {sampling.seed}"] if samples else [])])


def _problem(key: str, value: Any) -> str | None:
    """Return the problem of a value, or None."""
    allowed, expected = ALLOWED[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if number and allowed(value) else f"expected {expected}; found {found(value)}"
