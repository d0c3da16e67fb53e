"""Greedy answers from a model and an adapter, on either engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qwen_local.adapters.store import load_adapter
from qwen_local.backends.base import Setup
from qwen_local.backends.select import (
    DType,
    choose,
    open_backend,
    probe,
    resolve_dtype,
)
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import InputError
from qwen_local.models.source import fetch, find_model

Messages = list[dict[str, Any]]

log = logging.getLogger("qwen_local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer, as `generate --json` prints it."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    """`stop` at the end of the turn or of the text, `length` at the limit."""
    ended_turn: bool
    """Whether the model ended its turn, as it was taught to."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


class Answerer:
    """A model with its tokenizer, ready to be asked."""

    def __init__(
        self,
        model: str,
        *,
        adapter: Path | None,
        backend: str,
        device: str,
        revision: str | None = None,
        dtype: DType | Literal["auto"] = "auto",
        thinking: bool | None = None,
    ) -> None:
        """Load model, tokenizer and adapter.

        Args:
            model: hub id, folder or the embedded model.
            adapter: a run or an adapter's folder; None for the bare model.
            backend: `auto`, `mlx` or `cuda`.
            device: `auto`, `gpu` or `cpu`.
            revision: of a hub model.
            dtype: of the frozen model.
            thinking: for templates that know it; None begins an adapter's answer where the training
                of plain answers began it, and leaves the bare model to its template.
        """
        machine = probe()
        choice = choose(machine, backend, device)
        files = fetch(find_model(model, revision))
        loaded = None if adapter is None else load_adapter(adapter, files.architecture)
        if loaded is not None and loaded.base != model:
            log.warning("the adapter was made for %s; this is %s", loaded.base or "?", model)
        held_in, _ = resolve_dtype(machine, choice, dtype)
        self._positions = files.architecture.positions
        self._tokenizer = ChatTokenizer.load(files.folder)
        self._tokenizer.check_fits(files.architecture.vocabulary, model)
        self._thinking = thinking
        if thinking is None and adapter is not None:
            self._thinking = self._tokenizer.thinking_as_trained()
        self._engine = open_backend(
            choice,
            Setup(
                model=files,
                lora=None if loaded is None else loaded.lora,
                device=choice.device,
                dtype=held_in,
            ),
        )
        if loaded is not None:
            self._engine.load_adapter(loaded.arrays)

    def ask(self, conversations: Sequence[Messages], *, max_tokens: int) -> list[Answer]:
        """The next assistant turn of each conversation.

        Raises:
            InputError: a prompt leaves no room for an answer in the model's context.
        """
        prompts = [
            self._tokenizer.encode_prompt(messages, enable_thinking=self._thinking)
            for messages in conversations
        ]
        for prompt in prompts:
            if len(prompt) >= self._positions:
                raise InputError.at(
                    "--prompt",
                    f"{len(prompt)} tokens exceed the model's {self._positions} positions",
                    "shorten it",
                )
            if len(prompt) + max_tokens > self._positions:
                raise InputError.at(
                    "--max-tokens",
                    f"{len(prompt)} prompt tokens and {max_tokens} more exceed the model's "
                    f"{self._positions} positions",
                    f"at most {self._positions - len(prompt)} fit after this prompt",
                )
        completions = self._engine.generate(
            prompts, max_tokens=max_tokens, stop_ids=self._tokenizer.stop_ids
        )
        return [
            Answer(
                text=self._tokenizer.decode(completion.ids),
                prompt_tokens=len(prompt),
                completion_tokens=len(completion.ids),
                finish_reason=completion.finish_reason,
                ended_turn=completion.stop_id == self._tokenizer.end_of_turn,
            )
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


def answer(
    model: str,
    *,
    revision: str | None,
    adapter: Path | None,
    prompt: str,
    system: str | None,
    max_tokens: int,
    backend: str,
    device: str,
    thinking: bool | None = None,
) -> Answer:
    """One answer to one prompt."""
    messages: Messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": prompt})
    answerer = Answerer(
        model,
        revision=revision,
        adapter=adapter,
        backend=backend,
        device=device,
        thinking=thinking,
    )
    return answerer.ask([messages], max_tokens=max_tokens)[0]
