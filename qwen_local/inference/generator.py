"""Answers from a model and an adapter, on either engine: many at once, or one as it comes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from qwen_local.adapters.lora import Adapter, Origin
from qwen_local.adapters.prompt import thinking_of
from qwen_local.adapters.store import origin_in
from qwen_local.backends.base import Completion, Sampling, Session
from qwen_local.backends.machine import COMPUTING
from qwen_local.backends.select import ENGINES, DType, probe
from qwen_local.errors import InputError
from qwen_local.inference.sampling_options import (
    GREEDY,
    Wishes,
    check_wishes,
    choose_sampling,
    sampling_defaults,
)
from qwen_local.inference.switch import Switch
from qwen_local.inference.text import CLOSE, OPEN, TextStream
from qwen_local.job.schema import Quantization
from qwen_local.models.fingerprint import fingerprint
from qwen_local.models.source import PROOF
from qwen_local.resolve.open import open_model
from qwen_local.resolve.request import Request
from qwen_local.resolve.resolve import resolve, with_weights

Messages = list[dict[str, Any]]
"""`role` and `content`; from data, also what `qwen_local.datasets.formats.Message` may have."""

log = logging.getLogger("qwen_local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer, as `generate --json` prints it."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    """`stop` at the end of the turn or of the text, `length` at the limit, or `interrupted`."""
    ended_turn: bool
    """Whether the model ended its turn, as it was taught to."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A conversation as tokens, up to where the model goes on."""

    ids: list[int]
    opening: str
    """The open think block that the answer then begins in, or nothing."""


class Answerer:
    """A model with its tokenizer, ready to be asked."""

    def __init__(
        self,
        model: str | None,
        *,
        adapter: Path | None,
        backend: str,
        device: str,
        revision: str | None = None,
        dtype: DType | Literal["auto"] = "auto",
        quantization: Quantization | None = None,
        thinking: bool | None = None,
        wishes: Wishes = GREEDY,
    ) -> None:
        """Load model, tokenizer and adapter.

        Args:
            model: hub id, folder or the embedded model; None takes the one that the adapter names.
            adapter: a run or an adapter's folder; None for the bare model.
            backend: `auto`, `mlx` or `cuda`.
            device: `auto`, `gpu` or `cpu`.
            revision: of a hub model.
            dtype: of the frozen model.
            quantization: what its blocks' linear layers are held in; None as the adapter was
                trained.
            thinking: for templates that know it; None begins an adapter's answer, merged or not,
                where most of its training began, and leaves the bare model to its template.
            wishes: how answers are drawn where they come one at a time.

        Raises:
            InputError: something cannot be used as given.
        """
        check_wishes(wishes)
        request = Request(
            model=model,
            revision=revision,
            adapter=adapter,
            backend=backend,
            device=device,
            dtype=dtype,
            quantization=quantization,
        )
        resolved = with_weights(resolve(request, probe()))
        name, choice = resolved.source.name, resolved.choice
        self.sampling: Sampling = choose_sampling(
            sampling_defaults(resolved.model.folder, name), wishes
        )
        """How answers are drawn where they come one at a time."""
        self.positions = resolved.architecture.positions
        """The longest conversation that the model was made for, in tokens."""
        self._tokenizer = resolved.known_tokenizer
        self._asked_thinking = thinking
        folder = resolved.model.folder
        self._merged = origin_in(folder) if (folder / PROOF).is_file() else None
        self.trained_length: int | None = None
        """Tokens of the longest row that the adapter could learn, where it is known."""
        self._adapter = resolved.adapter
        self._answer_as_trained(self._merged if self._adapter is None else self._adapter.origin)
        self._engine = open_model(resolved, resolved.setup()).backend
        self._switch = None if self._adapter is None else Switch(self._engine, self._adapter.arrays)
        self._adapted = True  # where there is an adapter
        self._files = resolved.model
        self._packages = COMPUTING[choice.backend]
        self._held = {
            "backend": choice.backend,
            "device": choice.device,
            "dtype": resolved.dtype,
            "quantization": resolved.quantization,
        }
        held = [resolved.quantization] if resolved.quantization != "none" else []
        how = [choice.device, resolved.dtype, *held]
        self.about = (
            f"{name}{f' with {adapter}' if adapter else ''} on {ENGINES[choice.backend]} "
            f"({', '.join(how)}): {choice.reason}"
        )
        """What answers, and on what, in words."""

    def _answer_as_trained(self, learned: Origin | None) -> None:
        """Begin answers as training did, unless told otherwise; None where there was none."""
        self.trained_length = None if learned is None else learned.max_length
        self._thinking = self._asked_thinking
        if self._thinking is None and learned is not None:
            self._thinking = thinking_of(learned, self._tokenizer)

    def bare(self) -> Answerer:
        """The same model in the same memory, as if it had been opened without its adapter.

        Both can be asked in turns: see `Switch`.
        """
        bare = copy(self)
        bare._adapted = False
        bare._answer_as_trained(self._merged)
        return bare

    def identity(self) -> dict[str, Any]:
        """What the likeliest answers follow from, but for what is asked: the same, the same."""
        adapter = None if self._adapter is None else _digest(self._adapter)
        return {
            "model": self._files.name,
            "commit": self._files.commit,
            "weights": fingerprint(self._files.folder),
            "tokenizer": self._tokenizer.sha256,
            "adapter": adapter if self._adapted else None,
            "thinking": self._thinking,
            **self._held,
            "versions": {name: metadata.version(name) for name in self._packages},
        }

    def session(self) -> Session:
        """A new conversation, whose turns are computed once."""
        if self._switch is None:
            return self._engine.session()
        return self._switch.session(on=self._adapted)

    def prompt(self, messages: Messages, tools: Sequence[Mapping[str, Any]] = ()) -> Prompt:
        """The prompt of the next assistant turn, rendered as in training.

        Args:
            messages: the conversation so far.
            tools: the functions that it may call.

        Raises:
            DatasetError: a message cannot be encoded, or the template refuses them.
        """
        ids = self._tokenizer.encode_prompt(messages, tools=tools, enable_thinking=self._thinking)
        begun = self._tokenizer.opening_of(ids)
        return Prompt(ids=ids, opening=begun if OPEN in begun and CLOSE not in begun else "")

    def stream(
        self,
        session: Session,
        prompt: Prompt,
        *,
        max_tokens: int,
        sampling: Sampling,
        show: Callable[[str], bool],
    ) -> Answer:
        """One answer as it comes.

        Args:
            session: where the conversation so far was computed.
            prompt: from `prompt`.
            max_tokens: the most to generate; prompt and answer must fit into the model's positions.
            sampling: how tokens are drawn.
            show: takes the text piece by piece, in whole characters; False ends the answer.
        """
        text = TextStream(self._tokenizer.decode)
        said: list[str] = []

        def emit(token: int) -> bool:
            said.append(text.add(token))
            return show(said[-1])

        completion = session.reply(
            prompt.ids,
            max_tokens=max_tokens,
            stop_ids=self._tokenizer.stop_ids,
            sampling=sampling,
            emit=emit,
        )
        if completion.finish_reason == "stop":  # else half a character was only cut off
            said.append(text.end())
            show(said[-1])
        return self._answer("".join(said), prompt.ids, completion)

    def ask(self, conversations: Sequence[Messages], *, max_tokens: int) -> list[Answer]:
        """The next assistant turn of each conversation, always the likeliest token.

        Raises:
            InputError: a prompt leaves no room for an answer in the model's context.
        """
        prompts = [self.prompt(messages) for messages in conversations]
        for prompt in prompts:
            self.check_room(prompt.ids, max_tokens)
        return self.go_on(prompts, max_tokens=max_tokens)

    def go_on(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Answer]:
        """The answers to prompts that leave room for them, always the likeliest token."""
        if self._switch is not None:
            self._switch.turn(on=self._adapted)
        completions = self._engine.generate(
            [prompt.ids for prompt in prompts],
            max_tokens=max_tokens,
            stop_ids=self._tokenizer.stop_ids,
        )
        return [
            self._answer(self._tokenizer.decode(completion.ids), prompt.ids, completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def check_room(self, prompt: Sequence[int], max_tokens: int) -> None:
        """Refuse a prompt that leaves no room for its answer.

        Raises:
            InputError: both together exceed the model's positions.
        """
        if len(prompt) >= self.positions:
            raise InputError.at(
                "--prompt",
                f"{len(prompt)} tokens exceed the model's {self.positions} positions",
                "shorten it",
            )
        if len(prompt) + max_tokens > self.positions:
            raise InputError.at(
                "--max-tokens",
                f"{len(prompt)} prompt tokens and {max_tokens} more exceed the model's "
                f"{self.positions} positions",
                f"at most {self.positions - len(prompt)} fit after this prompt",
            )

    def _answer(self, text: str, prompt: Sequence[int], completion: Completion) -> Answer:
        return Answer(
            text=text,
            prompt_tokens=len(prompt),
            completion_tokens=len(completion.ids),
            finish_reason=completion.finish_reason,
            ended_turn=completion.stop_id == self._tokenizer.end_of_turn,
        )


def answer(
    *,
    prompt: str,
    system: str | None,
    max_tokens: int,
    show: Callable[[str], None],
    **opening: Any,
) -> Answer:
    """One answer to one prompt.

    Args:
        prompt: what the user says.
        system: what stands before it.
        max_tokens: the most to generate.
        show: takes the text piece by piece, in whole characters.
        **opening: as for `Answerer`.
    """
    answerer = Answerer(**opening)
    asked = answerer.prompt([*system_message(system), {"role": "user", "content": prompt}])
    answerer.check_room(asked.ids, max_tokens)

    def go_on(text: str) -> bool:
        show(text)
        return True

    return answerer.stream(
        answerer.session(),
        asked,
        max_tokens=max_tokens,
        sampling=answerer.sampling,
        show=go_on,
    )


def system_message(text: str | None) -> Messages:
    """The system message of a conversation, where there is one."""
    return [] if text is None else [{"role": "system", "content": text}]


def _digest(adapter: Adapter) -> str:
    """SHA-256 of what an adapter adds, in hex."""
    digest = hashlib.sha256(f"{adapter.lora.scale}".encode())
    for name, array in sorted(adapter.arrays.items()):
        digest.update(f"\n{name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
