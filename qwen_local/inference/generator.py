"""Generate answers with a model and an adapter, on either engine: in batches, or streamed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from qwen_local.adapters.lora import Adapter, Origin
from qwen_local.adapters.prompt import thinking_of
from qwen_local.adapters.store import origin_in
from qwen_local.backends.base import Completion, Sampling, Session
from qwen_local.backends.machine import COMPUTING
from qwen_local.backends.probe import probe
from qwen_local.backends.select import ENGINES
from qwen_local.errors import InputError
from qwen_local.inference.sampling_options import (
    GREEDY,
    SamplingOptions,
    check_options,
    choose_sampling,
    sampling_defaults,
)
from qwen_local.inference.switch import Switch
from qwen_local.inference.text import CLOSE, OPEN, TextStream
from qwen_local.models.fingerprint import fingerprint
from qwen_local.models.source import PROOF
from qwen_local.resolve.open import open_model
from qwen_local.resolve.request import Request
from qwen_local.resolve.resolve import Resolved, resolve, with_weights

Messages = list[dict[str, Any]]
"""`role` and `content`; from data, also the other fields of `qwen_local.datasets.formats.Message`.
"""

log = logging.getLogger("qwen_local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer; `generate --json` prints it."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    """`stop` at the end of the turn or of the text, `length` at the limit, or `interrupted`."""
    ended_turn: bool
    """True if the model generated the end-of-turn token."""

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A conversation as tokens, up to the start of the answer."""

    ids: list[int]
    opening: str
    """End of the prompt that opens a think block, which the answer continues; "" if none does."""


class Generator:
    """A model in memory, with its tokenizer and adapter."""

    def __init__(
        self,
        request: Request,
        *,
        thinking: bool | None = None,
        options: SamplingOptions = GREEDY,
    ) -> None:
        """Load model, tokenizer and adapter.

        Args:
            request: the model, the adapter, and where they run.
            thinking: for templates with a thinking mode. None starts the answers of an adapter (or
                of a merged model) like most of its training rows, and leaves the base model to its
                template.
            options: sampling options of streamed answers.

        Raises:
            InputError: the options are invalid, or the request cannot be met.
        """
        check_options(options)
        resolved = with_weights(resolve(request, probe()))
        folder = resolved.model.folder
        defaults = sampling_defaults(folder, resolved.source.name)
        self.sampling: Sampling = choose_sampling(defaults, options)
        """Sampling settings of streamed answers."""
        self.positions = resolved.architecture.positions
        """Maximum number of tokens in a conversation."""
        self.trained_length: int | None = None
        """Maximum row length that the adapter was trained on, if known."""
        self.about = _describe(resolved)
        """Model, adapter, engine and device, in words."""
        self._resolved = resolved
        self._tokenizer = resolved.known_tokenizer
        self._requested_thinking = thinking
        self._adapter = resolved.adapter
        self._merged = origin_in(folder) if (folder / PROOF).is_file() else None
        self._answer_as_trained(self._merged if self._adapter is None else self._adapter.origin)
        self._engine = open_model(resolved, resolved.setup())
        self._switch = None if self._adapter is None else Switch(self._engine, self._adapter.arrays)
        self._uses_adapter = True  # if there is one

    def _answer_as_trained(self, origin: Origin | None) -> None:
        """Start answers as in training unless the caller chose; None if nothing was trained."""
        self.trained_length = None if origin is None else origin.max_length
        self._thinking = self._requested_thinking
        if self._thinking is None and origin is not None:
            self._thinking = thinking_of(origin, self._tokenizer)

    def bare(self) -> Generator:
        """Return the base model without its adapter; both share one model in memory.

        The two can be used alternately: see `Switch`.
        """
        bare = copy(self)
        bare._uses_adapter = False
        bare._answer_as_trained(self._merged)
        return bare

    def identity(self) -> dict[str, Any]:
        """Return everything that determines a greedy answer, except the prompt and its limits."""
        resolved = self._resolved
        backend = resolved.choice.backend
        adapter = None if self._adapter is None else _digest(self._adapter)
        return {
            "model": resolved.model.name,
            "commit": resolved.model.commit,
            "weights": fingerprint(resolved.model.folder),
            "tokenizer": self._tokenizer.sha256,
            "adapter": adapter if self._uses_adapter else None,
            "thinking": self._thinking,
            "backend": backend,
            "device": resolved.choice.device,
            "dtype": resolved.dtype,
            "quantization": resolved.quantization,
            "versions": {name: metadata.version(name) for name in COMPUTING[backend]},
        }

    def session(self) -> Session:
        """Start a conversation; each of its turns is computed once."""
        if self._switch is None:
            return self._engine.session()
        return self._switch.session(on=self._uses_adapter)

    def prompt(self, messages: Messages, tools: Sequence[Mapping[str, Any]] = ()) -> Prompt:
        """Render the prompt of the next assistant turn as in training.

        Args:
            messages: the conversation so far.
            tools: functions that the model may call.

        Raises:
            DatasetError: a message cannot be encoded, or the template rejects the messages.
        """
        ids = self._tokenizer.encode_prompt(messages, tools=tools, enable_thinking=self._thinking)
        opening = self._tokenizer.opening_of(ids)
        return Prompt(ids=ids, opening=opening if OPEN in opening and CLOSE not in opening else "")

    def stream(
        self,
        session: Session,
        prompt: Prompt,
        *,
        max_tokens: int,
        sampling: Sampling,
        show: Callable[[str], bool],
    ) -> Answer:
        """Generate one answer and pass on its text as it is generated.

        Args:
            session: holds the conversation that was computed so far.
            prompt: from `prompt`.
            max_tokens: maximum answer length; prompt and answer must fit into `positions`.
            sampling: sampling settings.
            show: takes the text piece by piece, in whole characters; False ends the answer.
        """
        text = TextStream(self._tokenizer.decode)
        pieces: list[str] = []

        def emit(token: int) -> bool:
            pieces.append(text.add(token))
            return show(pieces[-1])

        completion = session.reply(
            prompt.ids,
            max_tokens=max_tokens,
            stop_ids=self._tokenizer.stop_ids,
            sampling=sampling,
            emit=emit,
        )
        if completion.finish_reason == "stop":  # else the limit cut an incomplete character
            pieces.append(text.end())
            show(pieces[-1])
        return self._answer("".join(pieces), prompt.ids, completion)

    def ask(self, conversations: Sequence[Messages], *, max_tokens: int) -> list[Answer]:
        """Generate the next assistant turn of each conversation, greedily.

        Raises:
            InputError: a prompt leaves no room for its answer in the model's positions.
        """
        prompts = [self.prompt(messages) for messages in conversations]
        for prompt in prompts:
            self.check_room(prompt.ids, max_tokens)
        return self.generate(prompts, max_tokens=max_tokens)

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Answer]:
        """Answer prompts that leave room for their answers, greedily."""
        if self._switch is not None:
            self._switch.turn(on=self._uses_adapter)
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
        """Reject a prompt that leaves no room for its answer.

        Raises:
            InputError: both together exceed the model's positions.
        """
        if len(prompt) >= self.positions:
            raise InputError.at(
                "prompt",
                f"{len(prompt)} tokens exceed the model's {self.positions} positions",
                "shorten it",
            )
        if len(prompt) + max_tokens > self.positions:
            raise InputError.at(
                "max_tokens",
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
    request: Request,
    *,
    prompt: str,
    system: str | None,
    max_tokens: int,
    show: Callable[[str], None],
    thinking: bool | None = None,
    options: SamplingOptions = GREEDY,
) -> Answer:
    """Answer one prompt.

    Args:
        request: see `Generator`.
        prompt: message of the user.
        system: the system message.
        max_tokens: maximum answer length.
        show: takes the text piece by piece, in whole characters.
        thinking: see `Generator`.
        options: see `Generator`.

    Raises:
        InputError: the request or the options cannot be used, or the prompt leaves no room.
    """
    generator = Generator(request, thinking=thinking, options=options)
    rendered = generator.prompt([*system_message(system), {"role": "user", "content": prompt}])
    generator.check_room(rendered.ids, max_tokens)

    def show_and_continue(text: str) -> bool:
        show(text)
        return True

    return generator.stream(
        generator.session(),
        rendered,
        max_tokens=max_tokens,
        sampling=generator.sampling,
        show=show_and_continue,
    )


def system_message(text: str | None) -> Messages:
    """Return the system message as the start of a conversation; nothing for None."""
    return [] if text is None else [{"role": "system", "content": text}]


def _describe(resolved: Resolved) -> str:
    adapter, choice = resolved.request.adapter, resolved.choice
    quantized = [resolved.quantization] if resolved.quantization != "none" else []
    return (
        f"{resolved.source.name}{f' with {adapter}' if adapter else ''} "
        f"on {ENGINES[choice.backend]} "
        f"({', '.join([choice.device, resolved.dtype, *quantized])}): {choice.reason}"
    )


def _digest(adapter: Adapter) -> str:
    """Return the SHA-256 of the adapter's scale, names and arrays, in hex."""
    digest = hashlib.sha256(f"{adapter.lora.scale}".encode())
    for name, array in sorted(adapter.arrays.items()):
        digest.update(f"\n{name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
