"""How much room a run needs on the disk, known before its first step."""

from __future__ import annotations

from pathlib import Path

from qwen_local.errors import DiskFullError
from qwen_local.files import free_bytes

CHECKPOINT_BYTES = 12
"""Of a trainable parameter: itself and AdamW's two moments, float32."""

ADAPTER_BYTES = 8
"""The same in adapter/, which has it in two layouts."""

EVENT_BYTES = 400
"""Of a step in metrics.jsonl."""

LITTLE = 1 << 20
"""For what has no size to speak of: job, environment, log, model card, markers."""


def disk_need(trainable: int, *, keep: int, steps: int) -> int:
    """Bytes of a run's folder at its largest.

    There are `keep` checkpoints, the best, one that resuming needs, and one that is being written
    while the others still stand; adapter/ is written beside the one that it replaces.

    Args:
        trainable: adapter parameters.
        keep: `train.keep`.
        steps: optimizer steps of the run.

    >>> disk_need(1_000_000, keep=2, steps=1000) - LITTLE
    76400000
    """
    checkpoints = (keep + 3) * CHECKPOINT_BYTES * trainable
    return checkpoints + 2 * ADAPTER_BYTES * trainable + EVENT_BYTES * steps + LITTLE


def check_disk(output: Path, needed: int) -> None:
    """Refuse a disk that a run would fill.

    Raises:
        DiskFullError: it has less than that free.
    """
    if (free := free_bytes(output)) < needed:
        raise DiskFullError(output, needed, free)
