"""Prompts that match an adapter's training data."""

from __future__ import annotations

import logging

from qwen_local.adapters.lora import Origin
from qwen_local.datasets.tokenizer import ChatTokenizer

log = logging.getLogger("qwen_local")


def thinking_of(origin: Origin, tokenizer: ChatTokenizer) -> bool | None:
    """Return the `enable_thinking` of most prompts in an adapter's training data.

    If it is not recorded, as in adapters of other tools, assume answers without reasoning.

    Args:
        origin: of the adapter.
        tokenizer: of the model that the adapter is applied to.
    """
    if origin.template_sha256 is None:
        return tokenizer.thinking_as_trained()
    if origin.template_sha256 != tokenizer.template_sha256:
        log.warning(
            "the adapter was trained with another chat template than this model has: its prompts "
            "differ from those in training"
        )
    return origin.enable_thinking
