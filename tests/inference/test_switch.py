"""One model in memory, with its adapter and without: what each says is what it says alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen_local.backends.base import Sampling
from qwen_local.backends.machine import Engine
from qwen_local.embedded import TINY_MODEL
from qwen_local.inference.generator import Generator, Messages
from qwen_local.inference.switch import Switch
from qwen_local.resolve.request import Request

QUESTIONS = ("What colour is the sky?", "And grass? Say it again, please.", "Hello")


def open_it(engine: Engine, adapter: Path | None) -> Generator:
    return Generator(Request(model=TINY_MODEL, adapter=adapter, backend=engine, device="cpu"))


Talk = Callable[[str], str]


def talk(generator: Generator, sampling: Sampling) -> Talk:
    """A conversation with its history and its session."""
    session, messages = generator.session(), Messages()

    def ask(question: str) -> str:
        messages.append({"role": "user", "content": question})
        answer = generator.stream(
            session,
            generator.prompt(messages),
            max_tokens=12,
            sampling=sampling,
            show=lambda text: True,
        )
        messages.append({"role": "assistant", "content": answer.text})
        return answer.text

    return ask


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3)], ids=str)
def test_asked_in_turns_both_say_what_they_say_alone(
    sampling: Sampling, engine: Engine, changing_adapter: Path
) -> None:
    both = open_it(engine, changing_adapter)
    bare, adapted = talk(both.bare(), sampling), talk(both, sampling)
    in_turns = [(bare(question), adapted(question)) for question in QUESTIONS]
    bare, adapted = (
        talk(open_it(engine, None), sampling),
        talk(open_it(engine, changing_adapter), sampling),
    )
    assert in_turns == [(bare(question), adapted(question)) for question in QUESTIONS]
    assert all(base != own for base, own in in_turns)


def test_without_its_arrays_a_model_computes_what_the_bare_one_does_to_the_bit(
    engine: Engine, changing_adapter: Path
) -> None:
    both, alone = open_it(engine, changing_adapter), open_it(engine, None)
    assert both._switch is not None
    ids = both.prompt([{"role": "user", "content": QUESTIONS[0]}]).ids
    before = both._engine.logits(ids, last=5)
    both._switch.turn(on=False)
    np.testing.assert_array_equal(
        both._engine.logits(ids, last=5), alone._engine.logits(ids, last=5)
    )
    both._switch.turn(on=True)
    np.testing.assert_array_equal(both._engine.logits(ids, last=5), before)


def test_answers_to_many_come_from_the_voice_that_is_asked(
    engine: Engine, changing_adapter: Path
) -> None:
    asked: list[Messages] = [[{"role": "user", "content": question}] for question in QUESTIONS]
    both = open_it(engine, changing_adapter)
    bare = both.bare()
    own, base = both.ask(asked, max_tokens=8), bare.ask(asked, max_tokens=8)
    assert both.ask(asked, max_tokens=8) == own != base
    assert base == open_it(engine, None).ask(asked, max_tokens=8)


@pytest.mark.slow
def test_the_bare_voice_has_learned_nothing(changing_adapter: Path) -> None:
    both = open_it("cuda", changing_adapter)
    assert (both.trained_length, both.bare().trained_length) == (77, None)
    assert both.bare().identity() == open_it("cuda", None).identity() != both.identity()


def test_a_switch_that_was_broken_off_is_turned_again() -> None:
    loaded: list[int] = []

    class Breaking:
        def load_adapter(self, arrays: object) -> None:
            assert isinstance(arrays, dict)
            loaded.append(len(arrays))
            if len(loaded) == 2:
                raise KeyboardInterrupt

    switch = Switch(Breaking(), {"a": np.zeros(1)})  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        switch.turn(on=False)
    switch.turn(on=False)
    switch.turn(on=False)
    switch.turn(on=True)
    assert loaded == [1, 0, 0, 1]
