"""Conversations on both engines: what is kept between turns is used, and changes no answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qwen_local.backends.base import Backend, Completion, Sampling, Session
from qwen_local.backends.machine import Engine
from qwen_local.backends.prefix import reusable
from qwen_local.embedded import TINY_MODEL
from qwen_local.models.source import ModelFiles, fetch, find_model

OpenEngine = Callable[..., Backend]
MakeModel = Callable[[str, bool], ModelFiles]

STOP = 1
GREEDY = Sampling()
DRAWN = Sampling(temperature=1.0, seed=7)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(2, 320, length).tolist()


def say(
    session: Session,
    prompt: Sequence[int],
    *,
    max_tokens: int = 6,
    stop_ids: Sequence[int] = (STOP,),
    sampling: Sampling = GREEDY,
    emit: Callable[[int], bool] = lambda token: True,
) -> Completion:
    return session.reply(
        prompt, max_tokens=max_tokens, stop_ids=stop_ids, sampling=sampling, emit=emit
    )


@pytest.fixture
def backend(engine: Engine, open_engine: OpenEngine) -> Backend:
    """A model that has something to say: a random one repeats itself."""
    return open_engine(engine, fetch(find_model(TINY_MODEL)), lora=None)


@contextmanager
def computed(backend: Backend, engine: Engine) -> Iterator[list[int]]:
    """How many tokens each forward pass of the engine's model is given, while this is open."""
    model: Any = backend._model  # type: ignore[attr-defined]  # both engines have one
    counts: list[int] = []
    if engine == "cuda":

        def watch(module: Any, args: Any, kwargs: Any) -> None:
            counts.append(kwargs["input_ids"].shape[1])

        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        hook = inner.model.register_forward_pre_hook(watch, with_kwargs=True)
        yield counts
        hook.remove()
        return
    kind, plain = type(model.model), type(model.model).__call__

    def counting(self: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        counts.append(ids.shape[1])
        return plain(self, ids, *args, **kwargs)

    kind.__call__ = counting
    try:
        yield counts
    finally:
        kind.__call__ = plain


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_a_conversation_with_a_kept_cache_says_what_each_turn_says_from_nothing(
    model_type: str, engine: Engine, random_model: MakeModel, open_engine: OpenEngine
) -> None:
    backend = open_engine(engine, random_model(model_type, False))
    session = backend.session()
    talk = prompt_of(20)
    for turn in range(4):
        answer = say(session, talk)
        assert [answer] == backend.generate([talk], max_tokens=6, stop_ids=[STOP])
        assert say(backend.session(), talk) == answer
        talk += [*answer.ids, STOP, *prompt_of(7, seed=turn + 1)]


def test_only_what_is_new_is_computed(engine: Engine, backend: Backend) -> None:
    session = backend.session()
    talk = prompt_of(50)
    answer = say(session, talk)
    assert answer.finish_reason == "length"
    with computed(backend, engine) as counts:
        say(session, [*talk, *answer.ids, *prompt_of(5, seed=1)], max_tokens=2)
    # The last token of an answer may not have been fed; MLX computes the last of a prompt alone
    # and one token ahead.
    assert sum(counts) in range(5 + 1, 5 + 1 + 3), counts
    with computed(backend, engine) as counts:
        say(session, [*talk[:30], *prompt_of(4, seed=2)], max_tokens=1)
    assert sum(counts) in range(4, 4 + 2), counts


def test_of_a_prompt_that_is_all_there_the_last_token_is_computed(
    engine: Engine, backend: Backend
) -> None:
    session = backend.session()
    first = say(session, prompt_of(20))
    with computed(backend, engine) as counts:
        assert say(session, prompt_of(20)) == first
    assert counts[0] == 1


def test_tokens_are_emitted_one_by_one_and_the_stop_token_is_not(backend: Backend) -> None:
    plain = say(backend.session(), prompt_of(20))
    assert len(set(plain.ids)) > 1
    stop = plain.ids[-1]
    before = plain.ids[: plain.ids.index(stop)]
    heard: list[int] = []

    def listen(token: int) -> bool:
        heard.append(token)
        return True

    answer = say(backend.session(), prompt_of(20), stop_ids=[STOP, stop], emit=listen)
    assert answer == Completion(before, "stop", stop)
    assert tuple(heard) == before


def test_an_answer_that_is_interrupted_holds_what_came_and_the_session_goes_on(
    engine: Engine, backend: Backend
) -> None:
    plain = say(backend.session(), prompt_of(20))
    session = backend.session()
    heard: list[int] = []

    def two(token: int) -> bool:
        heard.append(token)
        return len(heard) < 2

    cut = say(session, prompt_of(20), emit=two)
    assert cut == Completion(plain.ids[:2], "interrupted", None)
    assert tuple(heard) == plain.ids[:2]
    with computed(backend, engine) as counts:
        assert say(session, prompt_of(20)) == plain
    assert counts[0] == 1
    talk = [*prompt_of(20), *cut.ids, STOP, *prompt_of(5, seed=1)]
    assert say(session, talk) == say(backend.session(), talk)


class Broken(Exception):
    pass


def test_an_exception_of_the_listener_leaves_a_session_that_goes_on(
    engine: Engine, backend: Backend
) -> None:
    session = backend.session()

    def fail(token: int) -> bool:
        raise Broken

    with pytest.raises(Broken):
        say(session, prompt_of(20), emit=fail)
    with computed(backend, engine) as counts:
        assert say(session, prompt_of(20)) == say(backend.session(), prompt_of(20))
    assert counts[0] == 1


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("when", [0, 2], ids=["in the prompt", "in the answer"])
def test_a_forward_pass_that_is_broken_off_between_layers_leaves_a_session_that_goes_on(
    when: int,
    layer: int,
    engine: Engine,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = backend.session()
    first = say(session, prompt_of(20))
    talk = [*prompt_of(20), *first.ids, *prompt_of(6, seed=1)]
    model: Any = backend._model  # type: ignore[attr-defined]
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    block = inner.model.layers[layer].mlp
    kind = type(block)
    name = "__call__" if engine == "mlx" else "forward"
    plain = getattr(kind, name)
    calls = 0

    def breaking(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if self is block:
            calls += 1
            if calls > when:
                raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(kind, name, breaking)
        with pytest.raises(KeyboardInterrupt):
            say(session, talk)
    assert say(session, talk) == say(backend.session(), talk)


def test_a_long_prompt_is_computed_in_parts(
    engine: Engine, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qwen_local.backends.cuda.session as torch_session
    import qwen_local.backends.mlx.session as mlx_session

    whole = say(backend.session(), prompt_of(50))
    for module in (torch_session, mlx_session):
        monkeypatch.setattr(module, "PREFILL", 16)
    with computed(backend, engine) as counts:
        assert say(backend.session(), prompt_of(50)) == whole
    assert counts[:3] == [16, 16, 16]


def test_a_seed_repeats_an_answer_whatever_was_drawn_before(backend: Backend) -> None:
    session = backend.session()
    one = say(session, prompt_of(20), sampling=DRAWN)
    assert say(session, prompt_of(20), sampling=DRAWN) == one
    others = {
        say(session, prompt_of(20), sampling=Sampling(temperature=1.0, seed=seed)).ids
        for seed in range(5)
    }
    assert len(others) > 1


def test_a_cold_or_narrow_draw_is_the_likeliest_token(backend: Backend) -> None:
    session = backend.session()
    likeliest = say(session, prompt_of(20))
    for narrow in (
        Sampling(temperature=0.01),
        Sampling(temperature=1.0, top_k=1),
        Sampling(temperature=1.0, top_p=1e-6),
        Sampling(temperature=1.0, min_p=1.0),
    ):
        assert say(session, prompt_of(20), sampling=narrow) == likeliest


def test_nothing_narrows_a_draw_but_what_is_set(backend: Backend) -> None:
    """transformers would draw from 50 tokens where it is told nothing."""
    session = backend.session()
    flat = Sampling(temperature=100.0)
    drawn = {
        say(session, prompt_of(20), max_tokens=1, sampling=replace(flat, seed=seed)).ids
        for seed in range(100)
    }
    assert len(drawn) > 60
    assert len(set(say(session, prompt_of(20), max_tokens=20, sampling=flat).ids)) > 10


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.6, top_p=0.8, top_k=20),
        Sampling(temperature=1.7, top_p=0.5, top_k=1000),
        Sampling(temperature=0.7, min_p=0.1),
        Sampling(temperature=0.01, top_p=0.9),
        Sampling(temperature=1.2, top_p=0.95, top_k=5, min_p=0.3),
    ],
)
def test_both_engines_draw_by_the_same_odds(sampling: Sampling) -> None:
    """Ours of MLX against the processors that transformers makes of the same settings."""
    import mlx.core as mx
    import torch
    import transformers

    from qwen_local.backends.cuda.session import _settings
    from qwen_local.backends.mlx.session import narrowed

    logits = np.random.default_rng(0).normal(0, 1, (1, 320)).astype(np.float32)
    scores = torch.from_numpy(logits)
    settings = _settings(sampling, 1, [STOP])
    kinds = [
        transformers.TemperatureLogitsWarper(settings.temperature),
        *([transformers.TopKLogitsWarper(settings.top_k)] if settings.top_k else []),
        *([transformers.TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else []),
        *([transformers.MinPLogitsWarper(settings.min_p)] if settings.min_p else []),
    ]
    for warper in kinds:
        scores = warper(torch.zeros(1, 1, dtype=torch.long), scores)
    mx.set_default_device(mx.cpu)
    logprobs = mx.array(logits)
    logprobs = logprobs - mx.logsumexp(logprobs)
    ours = np.array(mx.softmax(narrowed(logprobs, sampling), axis=-1))
    np.testing.assert_allclose(ours, scores.softmax(-1).numpy(), atol=2e-6)


def test_the_repetition_penalty_counts_the_whole_conversation_on_both_engines(
    open_engine: OpenEngine,
) -> None:
    sampling = Sampling(repetition_penalty=1.8)
    said = []
    for engine in ("mlx", "cuda"):
        backend = open_engine(engine, fetch(find_model(TINY_MODEL)), lora=None)
        session = backend.session()
        talk = prompt_of(40)
        plain = say(session, talk, max_tokens=12)
        first = say(session, talk, sampling=sampling, max_tokens=12)
        talk += [*first.ids, *prompt_of(6, seed=1)]
        second = say(session, talk, sampling=sampling, max_tokens=12)
        assert second == say(backend.session(), talk, sampling=sampling, max_tokens=12)
        assert plain != first
        said.append((plain, first, second))
    assert said[0] == said[1]


def test_lower_precision_answers_through_the_same_kept_cache(
    engine: Engine, open_engine: OpenEngine
) -> None:
    session = open_engine(engine, dtype="bfloat16").session()
    talk = prompt_of(20)
    first = say(session, talk)
    second = say(session, [*talk, *first.ids, *prompt_of(5, seed=1)])
    assert len(first.ids) == len(second.ids) == 6


def test_nothing_is_reused_beyond_the_first_difference() -> None:
    assert reusable([1, 2, 3, 4], [1, 2, 7, 4, 5]) == 2
    assert reusable([1, 2, 3], [1, 2, 3, 4]) == 3
    assert reusable([1, 2, 3], [1]) == 0
