"""Sampling options: the model's file, the caller's options, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_local.backends.base import Sampling
from qwen_local.embedded import tiny_model_path
from qwen_local.errors import InputError
from qwen_local.inference.sampling_options import (
    SamplingOptions,
    check_options,
    choose_sampling,
    describe,
    sampling_defaults,
)

QWEN3 = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "transformers_version": "4.51.0",
}
"""generation_config.json of Qwen/Qwen3-0.6B."""


def defaults(folder: Path, config: Any) -> Sampling:
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "generation_config.json").write_text(text)
    return sampling_defaults(folder, "some/model")


def test_the_file_of_qwen3_is_read(tmp_path: Path) -> None:
    assert defaults(tmp_path, QWEN3) == Sampling(temperature=0.6, top_k=20, top_p=0.95)


def test_a_greedy_file_keeps_its_repetition_penalty(tmp_path: Path) -> None:
    config = {**QWEN3, "do_sample": False, "repetition_penalty": 1.1}
    assert defaults(tmp_path, config) == Sampling(repetition_penalty=1.1)


@pytest.mark.parametrize("config", [{}, {"temperature": 0.6}, {"do_sample": None}])
def test_without_do_sample_answers_are_greedy(config: dict[str, Any], tmp_path: Path) -> None:
    assert defaults(tmp_path, config) == Sampling()


def test_a_setting_that_is_left_out_narrows_nothing(tmp_path: Path) -> None:
    assert defaults(tmp_path, {"do_sample": True, "top_k": None}) == Sampling(temperature=1.0)


def test_no_file_and_the_embedded_model_are_greedy(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path, "some/model") == Sampling()
    assert sampling_defaults(tiny_model_path(), "qwen-local/tiny") == Sampling()


HINT = "\n\nhint: take the file from the model's page on the hub, or remove it"


@pytest.mark.parametrize(
    ("config", "faults"),
    [
        (
            {"do_sample": "yes", "temperature": "hot", "top_p": 0, "top_k": 2.5, "min_p": True},
            [
                "temperature: expected 0, or a number from 0.01 to 100; found 'hot'",
                "top_p: expected a number above 0 and at most 1; found 0",
                "top_k: expected a whole number, 0 for all tokens; found 2.5",
                "min_p: expected a number from 0 to 1; found true",
                "do_sample: expected true or false; found 'yes'",
            ],
        ),
        (
            {"repetition_penalty": -1},
            ["repetition_penalty: expected a number from 0.01 to 100; found -1"],
        ),
    ],
)
def test_every_malformed_value_of_the_file_is_named(
    config: dict[str, Any], faults: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        defaults(tmp_path, config)
    expected = (f"some/model: generation_config.json: {fault}{HINT}" for fault in faults)
    assert str(error.value) == "\n\n".join(expected)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "expected an object; found a list"),
        (
            "{",
            "not readable as JSON: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)",
        ),
    ],
)
def test_a_file_that_is_no_object_is_named(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        defaults(tmp_path, text)
    assert str(error.value) == f"some/model: generation_config.json: {problem}{HINT}"


def test_options_override_the_settings_of_the_model() -> None:
    model = Sampling(temperature=0.6, top_k=20, top_p=0.95)
    options = SamplingOptions(temperature=1.0, top_k=0, min_p=0.1, repetition_penalty=1.2, seed=5)
    assert choose_sampling(model, options) == Sampling(
        temperature=1.0, top_k=0, top_p=0.95, min_p=0.1, repetition_penalty=1.2, seed=5
    )


def test_greedy_overrides_the_file_of_the_model() -> None:
    model = Sampling(temperature=0.6, top_k=20, top_p=0.95)
    for options in (SamplingOptions(greedy=True), SamplingOptions(temperature=0.0)):
        assert choose_sampling(model, options).temperature == 0


def test_without_a_seed_it_is_another_one_each_time() -> None:
    seeds = {choose_sampling(Sampling(), SamplingOptions()).seed for _ in range(5)}
    assert len(seeds) > 1


def test_every_flag_out_of_range_is_named_before_anything_is_loaded() -> None:
    options = SamplingOptions(
        temperature=0.001,
        top_p=1.5,
        top_k=-1,
        min_p=float("nan"),
        repetition_penalty=0.0,
        greedy=True,
        seed=-1,
    )
    with pytest.raises(InputError) as error:
        check_options(options)
    assert str(error.value) == (
        "temperature: expected 0, or a number from 0.01 to 100; found 0.001\n\n"
        "hint: higher values make answers more random; for example 0.7, or 0 for greedy\n\n"
        "top_p: expected a number above 0 and at most 1; found 1.5\n\n"
        "hint: sample from the most probable tokens with this total probability; "
        "for example 0.9\n\n"
        "top_k: expected a whole number, 0 for all tokens; found -1\n\n"
        "hint: sample from this many tokens; for example 20\n\n"
        "min_p: expected a number from 0 to 1; found nan\n\n"
        "hint: minimum probability of a token relative to the most probable one; "
        "for example 0.05\n\n"
        "repetition_penalty: expected a number from 0.01 to 100; found 0.0\n\n"
        "hint: makes earlier tokens less probable; for example 1.05, or 1 for none\n\n"
        "seed: expected 0 to 2147483647; found -1\n\n"
        "greedy: cannot be combined with `temperature`\n\n"
        "hint: leave one of them out"
    )


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (SamplingOptions(top_p=0.9), "also set `temperature`, for example `temperature=0.7`"),
        (SamplingOptions(top_p=0.9, greedy=True), "leave it out"),
        (SamplingOptions(top_p=0.9, temperature=0.0), "leave it out"),
    ],
)
def test_a_flag_without_an_effect_is_refused(options: SamplingOptions, hint: str) -> None:
    with pytest.raises(InputError) as error:
        choose_sampling(Sampling(), options)
    assert str(error.value) == (f"top_p: has no effect: the answers are greedy\n\nhint: {hint}")


def test_settings_are_described_in_words() -> None:
    drawn = Sampling(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05, seed=3)
    assert describe(drawn) == (
        "temperature 0.6, top-p 0.95, top-k 20, repetition penalty 1.05, seed 3"
    )
    penalized = Sampling(repetition_penalty=1.1)
    assert describe(penalized) == "greedy, repetition penalty 1.1"
