"""How answers begin that an adapter has learned."""

from __future__ import annotations

import logging

from qwen_local.adapters.lora import Origin
from qwen_local.datasets.tokenizer import ChatTokenizer

log = logging.getLogger("qwen_local")


def thinking_of(origin: Origin, tokenizer: ChatTokenizer) -> bool | None:
    """The `enable_thinking` of the prompts that most of an adapter's training answered.

    Where it is not recorded, as of an adapter that others made, it is that of plain answers.

    Args:
        origin: of the adapter.
        tokenizer: of the model that it is put on.
    """
    if origin.template_sha256 is None:
        return tokenizer.thinking_as_trained()
    if origin.template_sha256 != tokenizer.template_sha256:
        log.warning(
            "the adapter was trained under another chat template than the one of this model: "
            "its prompts are not those of the training"
        )
    return origin.enable_thinking
