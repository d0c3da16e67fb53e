"""Who answers: the model and the adapter that are asked for, the prompt of training, whole text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_local.adapters.lora import Adapter, Origin, initial_arrays
from qwen_local.adapters.store import base_of, save_adapter
from qwen_local.backends.base import Completion, Sampling
from qwen_local.backends.machine import Engine
from qwen_local.backends.open import open_backend
from qwen_local.embedded import TINY_MODEL, tiny_model_path
from qwen_local.errors import InputError
from qwen_local.inference.generator import Generator
from qwen_local.inference.sampling_options import SamplingOptions
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import fetch, find_model
from qwen_local.resolve.request import Request

Cli = Callable[..., Any]
UNKNOWN = Origin()
SKY = [{"role": "user", "content": "What colour is the sky?"}]


def open_it(model: str | None = TINY_MODEL, **settings: Any) -> Generator:
    how = {key: settings.pop(key) for key in ("thinking", "options") if key in settings}
    given: dict[str, Any] = {"backend": "cuda", "device": "cpu", **settings}
    return Generator(Request(model=model, **given), **how)


def save_some_adapter(folder: Path, base: str, origin: Origin = UNKNOWN) -> Path:
    """An adapter of the tiny model that changes what it says."""
    architecture = fetch(find_model(TINY_MODEL)).architecture
    lora = LoraSpec(rank=4, dropout=0.0)
    generator = np.random.default_rng(0)
    arrays = {
        name: array + generator.normal(0, 0.2, array.shape).astype(np.float32)
        for name, array in initial_arrays(architecture, lora, 0).items()
    }
    adapter = Adapter(
        base=base, lora=lora, blocks=architecture.blocks, arrays=arrays, origin=origin
    )
    save_adapter(adapter, folder)
    return folder


class Dictated:
    """A session in which these tokens are said."""

    def __init__(self, ids: Sequence[int], reason: str) -> None:
        self.ids, self.reason = ids, reason

    def reply(self, prompt: Sequence[int], *, emit: Callable[[int], bool], **_: Any) -> Completion:
        for token in self.ids:
            emit(token)
        return Completion(tuple(self.ids), self.reason, None)  # type: ignore[arg-type]


# --- one answer as it comes ---


def test_an_answer_comes_in_pieces_and_they_are_what_is_said_at_once(engine: Engine) -> None:
    generator = open_it(backend=engine)
    pieces: list[str] = []

    def show(text: str) -> bool:
        pieces.append(text)
        return True

    streamed = generator.stream(
        generator.session(),
        generator.prompt(SKY),
        max_tokens=50,
        sampling=generator.sampling,
        show=show,
    )
    assert [streamed] == generator.ask([SKY], max_tokens=50)
    assert streamed.text == "".join(pieces) == "The sky is blue."
    assert len(pieces) > 3
    assert streamed.ended_turn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reason", "text"), [("stop", "é\N{REPLACEMENT CHARACTER}"), ("length", "é")]
)
def test_half_a_character_is_shown_only_where_the_model_left_it_at_that(
    reason: str, text: str
) -> None:
    generator = open_it()
    ids = generator._tokenizer.encode_text("é🙂").ids[:-2]  # without the last byte
    shown: list[str] = []
    answer = generator.stream(
        Dictated(ids, reason),
        generator.prompt(SKY),
        max_tokens=50,
        sampling=Sampling(),
        show=lambda piece: not shown.append(piece),  # type: ignore[func-returns-value]
    )
    assert answer.text == "".join(shown) == text


# --- the prompt ---

HYBRID = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}
{%- elif enable_thinking is defined %}{{ '<think>\\n' }}{% endif %}{% endif %}"""
"""As Qwen3's, but that it opens the thoughts where thinking is on."""


@pytest.mark.slow
def test_a_prompt_says_whether_it_opens_the_thoughts(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_path(), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(HYBRID)
    asked = [{"role": "user", "content": "<think>"}]  # no matter what the user writes
    openings = {
        thinking: open_it(str(folder), thinking=thinking).prompt(asked).opening
        for thinking in (None, False, True)
    }
    assert openings == {None: "", False: "", True: "<think>\n"}


PLAIN = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{{- m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}{% endif %}"""
"""As Qwen3's for a last turn: an empty think block stands before a plain answer."""


@pytest.mark.slow
def test_a_fused_model_is_asked_as_its_adapter_was(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_path(), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(PLAIN)
    asked = [{"role": "user", "content": "Hi"}]
    bare = open_it(str(folder)).prompt(asked).ids
    (folder / "proof.json").write_text("{}")
    merged = open_it(str(folder)).prompt(asked).ids
    assert merged == open_it(str(folder), thinking=False).prompt(asked).ids != bare


# --- the model ---


@pytest.mark.slow
def test_without_a_model_the_one_that_the_adapter_names_is_taken_and_said(
    tmp_path: Path, cli: Cli
) -> None:
    save_some_adapter(tmp_path / "a", TINY_MODEL)
    args = ("generate", "--device", "cpu", "--max-tokens", "6", "--prompt", SKY[0]["content"])
    named = cli(*args, "--adapter", "a", "--model", TINY_MODEL)
    taken = cli(*args, "--adapter", "a")
    assert taken.out == named.out != cli(*args, "--model", TINY_MODEL).out
    assert named.err == "(cut off after 6 tokens; see --max-tokens)\n"
    said = f"model: {TINY_MODEL}, the adapter's base model\n"
    assert taken.err == f"{said}{named.err}"


@pytest.mark.parametrize(
    ("model", "revision", "expected"),
    [
        (None, None, "abc"),
        (None, "main", "main"),
        ("Qwen/Qwen3-0.6B", None, "abc"),
        ("Qwen/Qwen3-4B", None, None),
    ],
)
def test_the_commit_that_the_adapter_was_trained_on_is_asked_for(
    model: str | None, revision: str | None, expected: str | None, tmp_path: Path
) -> None:
    adapter = save_some_adapter(tmp_path / "a", "Qwen/Qwen3-0.6B", Origin(commit="abc"))
    source = base_of(model, revision, adapter)
    assert (source.name, source.revision) == (model or "Qwen/Qwen3-0.6B", expected)


def test_an_adapter_that_names_no_model_is_refused_without_one(tmp_path: Path) -> None:
    adapter = save_some_adapter(tmp_path / "a", "")
    with pytest.raises(InputError) as error:
        open_it(None, adapter=adapter)
    assert str(error.value) == (
        f"model: {adapter} does not name its base model\n\nhint: pass `model`"
    )


# --- what it is held in, and how it draws ---


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "held"), [(None, "4bit"), ("none", "none"), ("8bit", "8bit")])
def test_the_base_is_held_as_the_adapter_was_trained_unless_told_otherwise(
    wanted: Any, held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setups: list[Any] = []

    def note(choice: Any, setup: Any) -> Any:
        setups.append(setup)
        return open_backend(choice, replace(setup, quantization="none"))

    monkeypatch.setattr("qwen_local.backends.open.open_backend", note)
    origin = Origin(backend="mlx", quantization="4bit")
    adapter = save_some_adapter(tmp_path / "a", TINY_MODEL, origin)
    generator = open_it(adapter=adapter, backend="mlx", quantization=wanted)
    assert setups[0].quantization == held
    suffix = "" if held == "none" else f", {held}"
    assert generator.about == (
        f"{TINY_MODEL} with {adapter} on MLX (cpu, float32{suffix}): requested"
    )


@pytest.mark.slow
def test_answers_one_at_a_time_are_drawn_as_the_model_says_and_batches_are_greedy(
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(tiny_model_path(), tmp_path / "model")
    drawn = {"do_sample": True, "temperature": 3.0, "top_k": 50}
    (folder / "generation_config.json").write_text(json.dumps(drawn))
    generator = open_it(str(folder), options=SamplingOptions(seed=4))
    assert generator.sampling == Sampling(temperature=3.0, top_k=50, seed=4)
    assert generator.ask([SKY], max_tokens=50)[0].text == "The sky is blue."
    assert asdict(open_it(str(folder)).sampling)["temperature"] == 0
