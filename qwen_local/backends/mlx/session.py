"""A conversation under MLX, through mlx-lm's own generation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step, wired_limit
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, make_logits_processors

from qwen_local.backends.base import Completion, Sampling
from qwen_local.backends.prefix import PREFILL, reusable

WHOLE = 1 << 30
"""More tokens than any conversation has."""

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]


class MlxSession:
    """The contract of `qwen_local.backends.base.Session` on MLX."""

    def __init__(self, model: Any) -> None:
        """Start with an empty cache.

        Args:
            model: of mlx-lm, in evaluation mode.
        """
        self._model = model
        self._stream = mx.new_stream(mx.default_device())  # mlx-lm's is of the device at import
        self._cache = make_prompt_cache(model)
        self._held: list[int] = []  # tokens whose keys and values are in the cache

    def reply(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling,
        emit: Callable[[int], bool],
    ) -> Completion:
        """See `Session.reply`."""
        kept = reusable(self._held, prompt)
        self._keep(prompt[:kept])
        sure = list(prompt[:kept])  # the rest is cached once a token comes after it
        ids: list[int] = []
        with ExitStack() as stack:
            stack.callback(lambda: self._keep(sure))
            with redirect_stdout(sys.stderr):  # `wired_limit` prints its warning
                stack.enter_context(wired_limit(self._model, [self._stream]))
            steps = generate_step(
                mx.array(list(prompt[kept:])),
                self._model,
                self._stream,
                max_tokens=max_tokens,
                sampler=_sampler(sampling),
                logits_processors=_processors(sampling, prompt[:kept]),
                prompt_cache=self._cache,
                prefill_step_size=PREFILL,
            )
            stack.callback(steps.close)
            for token, _ in steps:
                sure += [*([] if ids else prompt[kept:]), token]
                if token in stop_ids:
                    return Completion(tuple(ids), "stop", token)
                ids.append(token)
                if not emit(token):
                    return Completion(tuple(ids), "interrupted", None)
        return Completion(tuple(ids), "length", None)

    def _keep(self, tokens: Sequence[int]) -> None:
        """Trim the cache to the longest prefix of these tokens that every layer holds.

        mlx-lm computes one token ahead of the one that it returns, and an interrupted forward pass
        leaves later layers with fewer tokens than earlier ones. If this method is interrupted
        itself, the cache counts as empty.
        """
        self._held = []
        whole = all(c.keys is not None and c.keys.shape == c.values.shape for c in self._cache)
        count = min(len(tokens), *(c.offset for c in self._cache)) if whole else 0
        if count == 0:
            self._cache = make_prompt_cache(self._model)
        for layer in self._cache:
            layer.trim(layer.offset - count)
        self._held = list(tokens[:count])


def _sampler(sampling: Sampling) -> Sampler:
    """Return a function that draws the next token [1] from log-probabilities [1, V]."""
    if sampling.temperature == 0:
        return lambda logprobs_1V: mx.argmax(logprobs_1V, axis=-1)
    key = mx.random.key(sampling.seed)

    def draw(logprobs_1V: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return mx.random.categorical(narrowed(logprobs_1V, sampling), key=now)

    return draw


def narrowed(logprobs_1V: mx.array, sampling: Sampling) -> mx.array:
    """Return log-probabilities (up to a constant) for the draw of a token, float32 [1, V].

    In the order of transformers: temperature, top-k, top-p, min-p. mlx-lm's own sampler applies the
    temperature last, which gives other probabilities under the same settings.
    """
    scores_1V = logprobs_1V.astype(mx.float32) / sampling.temperature
    if 0 < sampling.top_k < scores_1V.shape[-1]:
        scores_1V = apply_top_k(scores_1V, sampling.top_k)
    if sampling.top_p < 1:
        scores_1V = scores_1V - mx.logsumexp(scores_1V, axis=-1, keepdims=True)
        scores_1V = apply_top_p(scores_1V, sampling.top_p)
    if sampling.min_p > 0:
        scores_1V = apply_min_p(scores_1V, sampling.min_p)
    return scores_1V


def _processors(sampling: Sampling, kept: Sequence[int]) -> list[Processor]:
    """Return the repetition penalty, over the whole conversation as in transformers."""
    if sampling.repetition_penalty == 1:
        return []
    (penalize,) = make_logits_processors(
        repetition_penalty=sampling.repetition_penalty, repetition_context_size=WHOLE
    )
    before = mx.array(list(kept), mx.int32)  # mlx-lm counts only what it computes
    return [lambda ids, logits: penalize(mx.concatenate([before, ids]), logits)]
