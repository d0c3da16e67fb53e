"""`eval_rows.safetensors`: the loss of each evaluation row at each evaluation.

Arrays, with E evaluations of R rows (in the order of the evaluation set):

- `steps`, int32 [E]: optimizer steps done before each evaluation;
- `nll`, float32 [E, R]: sum of negative log-likelihoods of each row in nats;
- `tokens`, int32 [R]: supervised tokens of each row;
- `dropped`, int32 [1]: evaluations that are not in the file because of its limit.

The mean over tokens of evaluation e is `nll[e].sum() / tokens.sum()`. safetensors files cannot be
appended to, so each evaluation replaces the file; `LIMIT` bounds what that costs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_local.files import array_bytes, replace_file, room_for, sync_folder

log = logging.getLogger("qwen_local")

LIMIT = 8 << 20
"""Largest `nll` in bytes: 100 evaluations of 100,000 rows then write 0.7 GB in all, and 1,000 rows
have room for 2,000 evaluations. A full file keeps its first evaluation and the newest ones."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EvalRows:
    """Content of the file."""

    steps_E: np.ndarray
    """int32 [E], rising."""
    nll_ER: np.ndarray
    """float32 [E, R]."""
    tokens_R: np.ndarray
    """int32 [R]."""
    dropped: int = 0

    def up_to(self, step: int | None) -> EvalRows | None:
        """Evaluations up to this step; None if there are none, or if `step` is None."""
        count = 0 if step is None else int(np.searchsorted(self.steps_E, step, side="right"))
        if not count:
            return None
        return EvalRows(
            steps_E=self.steps_E[:count],
            nll_ER=self.nll_ER[:count],
            tokens_R=self.tokens_R,
            dropped=self.dropped,
        )


def read_eval_rows(path: Path) -> EvalRows | None:
    """Read the file; None if it is missing or damaged.

    Raises:
        OSError: it is there and cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(path.read_bytes())
        found = EvalRows(
            steps_E=arrays["steps"],
            nll_ER=arrays["nll"],
            tokens_R=arrays["tokens"],
            dropped=int(arrays["dropped"].sum()),
        )
    except (FileNotFoundError, KeyError, ValueError, SafetensorError):
        return None
    vectors = found.steps_E.ndim == found.tokens_R.ndim == 1
    fits = vectors and found.nll_ER.shape == (len(found.steps_E), len(found.tokens_R))
    return found if fits else None


class EvalRowsWriter:
    """Adds evaluations to the file.

    Args:
        path: the file. What it holds of steps up to `evaluated` is kept.
        evaluated: step of the last evaluation that the run resumes with; None keeps nothing.
        limit: largest `nll` in bytes.
    """

    def __init__(self, path: Path, *, evaluated: int | None = None, limit: int = LIMIT) -> None:
        self._path, self._limit = path, limit
        found = read_eval_rows(path)
        self._rows = None if found is None else found.up_to(evaluated)
        self._full = self._rows is not None and self._rows.dropped > 0
        # Not left to the next evaluation, because there may be none: metrics.jsonl has been cut at
        # the same place, and the two files must agree.
        if self._rows is None:
            if path.exists():
                if found is None:
                    log.info("warning: %s is damaged: its evaluations are lost", path)
                path.unlink()
                sync_folder(path.parent)  # else a power cut could bring the old rows back
        elif found is not None and len(self._rows.steps_E) < len(found.steps_E):
            self._write(self._rows)

    def add(self, step: int, nll_R: np.ndarray, tokens_R: np.ndarray) -> str | None:
        """Add an evaluation and replace the file; the new content is on the disk on return.

        Args:
            step: optimizer steps done.
            nll_R: [R], sum of negative log-likelihoods of each row in nats.
            tokens_R: [R], supervised tokens of each row.

        Returns:
            The problem in words, once: the file is full, and evaluations between the first and the
            newest ones are dropped from it; or not even two fit, and nothing is written. Else None.

        Raises:
            DiskFullError: the disk is full; the file is as it was.
        """
        before = self._rows
        if before is not None and len(before.tokens_R) != len(nll_R):
            before = None  # the file has other rows
        nll_ER = np.asarray(nll_R, np.float32)[None]
        steps_E = np.array([step], np.int32)
        dropped = 0
        if before is not None:
            nll_ER = np.concatenate([before.nll_ER, nll_ER])
            steps_E = np.concatenate([before.steps_E, steps_E])
            dropped = before.dropped
        capacity = self._limit // nll_ER[0].nbytes
        if capacity >= 2:
            if (over := len(steps_E) - capacity) > 0:
                keep = [0, *range(over + 1, len(steps_E))]
                steps_E, nll_ER, dropped = steps_E[keep], nll_ER[keep], dropped + over
            tokens_R = np.asarray(tokens_R, np.int32)
            rows = EvalRows(steps_E=steps_E, nll_ER=nll_ER, tokens_R=tokens_R, dropped=dropped)
            self._write(rows)
            self._rows = rows
        was_full, self._full = self._full, dropped > 0 or capacity < 2
        if not self._full or was_full:
            return None
        if capacity < 2:
            return f"{self._path.name} is not written: there are too many evaluation rows"
        kept = f"it keeps the first evaluation and the newest {capacity - 1:,}"
        return f"{self._path.name} is full: {kept}"

    def _write(self, rows: EvalRows) -> None:
        arrays = {
            "steps": rows.steps_E,
            "nll": rows.nll_ER,
            "tokens": rows.tokens_R,
            "dropped": np.array([rows.dropped], np.int32),
        }
        content = array_bytes(arrays, made_for="pt")
        with room_for(self._path, len(content)):
            replace_file(self._path, content)
