"""A conversation under PyTorch, through transformers' own generation."""

from __future__ import annotations

from qwen_local.backends.cuda import before_import  # noqa: F401  # first: it imports bitsandbytes

# isort: split
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
import transformers
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from qwen_local.backends.base import Completion, Sampling
from qwen_local.backends.prefix import PREFILL, reusable


class TorchSession:
    """The contract of `qwen_local.backends.base.Session` on PyTorch."""

    def __init__(
        self, model: torch.nn.Module, autocast: Callable[[], AbstractContextManager[object]]
    ) -> None:
        """Start with an empty cache.

        Args:
            model: a causal language model in evaluation mode, its generation config empty.
            autocast: context of its forward pass.
        """
        self._model = model
        self._autocast = autocast
        self._cache = transformers.DynamicCache(config=model.config)
        self._held: list[int] = []  # tokens whose keys and values are in the cache

    @torch.no_grad()
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
        self._keep(prompt[: reusable(self._held, prompt)])
        tap = _Tap(stop_ids, emit)
        device = next(self._model.parameters()).device
        ids_1W = torch.tensor([list(prompt)], device=device)
        try:
            with self._autocast(), _seeded(sampling.seed, device):
                self._model.generate(  # type: ignore[operator]  # a mixin's method
                    input_ids=ids_1W,
                    attention_mask=torch.ones_like(ids_1W),
                    past_key_values=self._cache,
                    generation_config=_settings(sampling, max_tokens, stop_ids),
                    streamer=tap,
                )
        except _InterruptedError:
            return Completion(tuple(tap.ids), "interrupted", None)
        finally:
            self._keep([*prompt, *tap.fed])
        return Completion(tuple(tap.ids), "length" if tap.stop is None else "stop", tap.stop)

    def _keep(self, tokens: Sequence[int]) -> None:
        """Crop the cache to the longest prefix of these tokens that every layer holds.

        An interrupted forward pass leaves later layers with fewer tokens than earlier ones. If this
        method is interrupted itself, the cache counts as empty.
        """
        self._held = []
        layers = self._cache.layers
        count = min(len(tokens), *(_length(x) for y in layers for x in (y.keys, y.values)))
        for layer in layers:
            if layer.is_initialized:
                layer.keys = layer.keys[..., :count, :] if count else layer.keys.new_empty(0)
                layer.values = layer.values[..., :count, :] if count else layer.values.new_empty(0)
        self._held = list(tokens[:count])


class _InterruptedError(Exception):
    """The reader stopped the answer."""


class _Tap(BaseStreamer):  # type: ignore[misc]  # its library has no types
    """Passes on each token of the answer, and records all that were generated.

    transformers calls it between forward passes, so its exceptions leave a consistent cache.
    """

    def __init__(self, stop_ids: Sequence[int], emit: Callable[[int], bool]) -> None:
        self.fed: list[int] = []
        """Every token, including the one that ended the answer."""
        self.ids: list[int] = []
        self.stop: int | None = None
        self._stop_ids = stop_ids
        self._emit = emit
        self._started = False

    def put(self, value: Tensor) -> None:
        if not self._started:  # the prompt comes first
            self._started = True
            return
        token = int(value.item())
        self.fed.append(token)
        if token in self._stop_ids:
            self.stop = token
            return
        self.ids.append(token)
        if not self._emit(token):
            raise _InterruptedError

    def end(self) -> None:
        """Do nothing: every token was passed on when it came."""


def _settings(
    sampling: Sampling, max_tokens: int, stop_ids: Sequence[int]
) -> transformers.GenerationConfig:
    """Set everything that transformers would otherwise fill in by itself (such as top_k=50)."""
    drawn = {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p or None,
    }
    return transformers.GenerationConfig(
        **drawn if sampling.temperature > 0 else {"do_sample": False},
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=max_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
        prefill_chunk_size=PREFILL,
    )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed and leave the caller's generators untouched."""
    with torch.random.fork_rng(devices=[0] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _length(states: Tensor | None) -> int:
    """Return the number of tokens in a layer's keys or values [1, H, T, D]; 0 before the first."""
    return 0 if states is None or states.numel() == 0 else states.shape[-2]
