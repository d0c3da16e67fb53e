"""Disk space that a run needs, known before its first step."""

from __future__ import annotations

from qwen_local.runs.eval_rows import LIMIT

CHECKPOINT_BYTES = 12
"""Per trainable parameter: the parameter and AdamW's two moments in float32."""

ADAPTER_BYTES = 8
"""Per trainable parameter in adapter/, which has two layouts."""

EVENT_BYTES = 400
"""Per step, in metrics.jsonl."""

SMALL_FILES = 1 << 20
"""For small files: job, environment, log, model card, COMPLETE.json."""


def disk_need(
    trainable: int, *, keep: int, steps: int, eval_rows: int = 0, evaluations: int = 0
) -> int:
    """Largest size of a run directory in bytes.

    It has `keep` checkpoints, the best one, one that resuming needs, and one that is being written
    before an old one is removed. adapter/ and eval_rows.safetensors are written before the old ones
    are removed.

    Args:
        trainable: number of adapter parameters.
        keep: `train.keep`.
        steps: optimizer steps of the run.
        eval_rows: number of evaluation rows.
        evaluations: of the run.

    >>> disk_need(1_000_000, keep=2, steps=1000) - SMALL_FILES
    76400000
    """
    checkpoints = (keep + 3) * CHECKPOINT_BYTES * trainable
    adapters = 2 * ADAPTER_BYTES * trainable
    rows = 2 * min(LIMIT, 4 * eval_rows * evaluations)
    return checkpoints + adapters + rows + EVENT_BYTES * steps + SMALL_FILES
