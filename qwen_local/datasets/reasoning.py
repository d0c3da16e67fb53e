"""What the assistant thought, in either way of writing it down."""

from __future__ import annotations

from typing import Any, NamedTuple

from qwen_local.datasets.template import Message

OPEN, CLOSE = "<think>", "</think>"


class Said(NamedTuple):
    """An answer in its two parts."""

    reasoning: str
    """Empty where there is none."""
    words: str


def split(message: Message) -> Said:
    r"""What an assistant message thinks and what it says.

    >>> split({"content": "<think>\nhm\n</think>\n\nyes"})
    Said(reasoning='hm', words='yes')
    >>> split({"content": "Write </think> to end it."})
    Said(reasoning='', words='Write </think> to end it.')
    """
    content: str = message["content"]
    if "reasoning_content" in message:
        return Said(str(message["reasoning_content"]).strip(), content)
    if not content.lstrip().startswith(OPEN) or CLOSE not in content:
        return Said("", content)
    thought, _, words = content.partition(CLOSE)
    return Said(thought.lstrip().removeprefix(OPEN).strip(), words.lstrip("\n"))


def without(message: Message) -> Message:
    r"""The same message without what the assistant thought.

    >>> without({"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"})
    {'role': 'assistant', 'content': 'yes'}
    """
    if message["role"] != "assistant":
        return message
    kept: dict[str, Any] = {k: v for k, v in message.items() if k != "reasoning_content"}
    return kept | {"content": split(message).words}
