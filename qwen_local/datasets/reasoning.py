"""The assistant's reasoning, as `reasoning_content` or as a leading think block."""

from __future__ import annotations

from typing import Any, NamedTuple

from qwen_local.datasets.template import Message

OPEN, CLOSE = "<think>", "</think>"


class AnswerParts(NamedTuple):
    """Reasoning and answer text of an assistant message."""

    reasoning: str
    """Empty if the message has no reasoning."""
    words: str
    """Answer without the reasoning."""


def split(message: Message) -> AnswerParts:
    r"""Split an assistant message into reasoning and answer.

    >>> split({"content": "<think>\nhm\n</think>\n\nyes"})
    AnswerParts(reasoning='hm', words='yes')
    >>> split({"content": "Write </think> to end it."})
    AnswerParts(reasoning='', words='Write </think> to end it.')
    """
    content: str = message["content"]
    if "reasoning_content" in message:
        return AnswerParts(str(message["reasoning_content"]).strip(), content)
    if not content.lstrip().startswith(OPEN) or CLOSE not in content:
        return AnswerParts("", content)
    thought, _, words = content.partition(CLOSE)
    return AnswerParts(thought.lstrip().removeprefix(OPEN).strip(), words.lstrip("\n"))


def without(message: Message) -> Message:
    r"""Return the message without reasoning.

    >>> without({"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"})
    {'role': 'assistant', 'content': 'yes'}
    """
    if message["role"] != "assistant":
        return message
    kept: dict[str, Any] = {k: v for k, v in message.items() if k != "reasoning_content"}
    return kept | {"content": split(message).words}
