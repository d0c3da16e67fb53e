"""Whether an export says what the live adapter says, measured.

The same tokens go through the live adapter, the bare base and the export: fixed conversations, and
rows of the run's own data where they are at hand. At every position that training would look at,
the logits are compared, and the loss is taken. Everything is computed in float32, block by block
(`blocks.py`), so that a model is proved in the memory that one of its blocks takes.

Where an export rounds, two things are shown apart: that the merge before rounding says what the
live adapter says, and that every tensor in the files is that merge, rounded once (`merge.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_local.backends.select import Choice
from qwen_local.export.blocks import Source, Voice, head_pieces, normed, through_all_blocks
from qwen_local.export.merge import ExportError
from qwen_local.export.samples import Samples

FLOAT32_ERROR = 1e-4
"""Allowed difference of float32 logits; where they exceed 1, as a share of the largest."""

LIVE, BARE, EXPORT, MERGE, FLOATS = "live", "bare", "export", "merge", "floats"
"""Voices: the adapter on its base, the base alone, the export, the merge before it is rounded, and
the base's weights as floats where live layers round what goes into them (LLM.int8())."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What `proof.json` says of an export, beside what it was made from."""

    max_logit_difference: float
    """Between the export and the live adapter."""
    rms_logit_difference: float
    """Root mean square of the same."""
    rms_adapter_effect: float
    """Root mean square of the difference between the live adapter and the bare base."""
    merge_logit_difference: float | None
    """The largest between the merge before it was rounded and the live adapter; None where nothing
    was merged, or that was quantized again at once."""
    allowed_logit_difference: float
    """What would be rounding of float32, of the merge or, where there is none, of the export."""
    top1_agreement: float
    """Share of positions whose likeliest token is the same."""
    positions: int
    """That were looked at."""
    rows_of_run: int
    """Rows of the run's own data that were looked at, which the losses are then over; else they are
    over the fixed conversations, and say nothing of what the adapter was trained for."""
    loss_live: float
    """Mean negative log-likelihood in nats."""
    loss_export: float
    loss_base: float

    def describe(self) -> str:
        """The same for a person."""
        same = (
            f"proved: the same likeliest token as the live adapter at {self.top1_agreement:.1%} of "
            f"{self.positions:,} positions; largest logit difference "
            f"{self.max_logit_difference:.2g}{self._before_rounding()}"
        )
        if not self.rows_of_run:
            return same
        return (
            f"{same}; loss on {self.rows_of_run} rows of the run {self.loss_export:.4f}, "
            f"{self.loss_live:.4f} live, {self.loss_base:.4f} without the adapter"
        )

    def _before_rounding(self) -> str:
        if self.merge_logit_difference in (None, self.max_logit_difference):
            return ""
        return f" ({self.merge_logit_difference:.2g} before rounding)"


@dataclass(slots=True)
class _Heard:
    """What a voice says at N positions, gathered piece by piece of the vocabulary."""

    source: Source
    hidden_ND: np.ndarray
    most_N: np.ndarray
    """The largest logit so far."""
    likeliest_N: np.ndarray
    sum_N: np.ndarray
    """float64: of exp(logit - most_N)."""
    target_N: np.ndarray
    """The logit of the right token."""

    @classmethod
    def nothing(cls, source: Source, hidden_ND: np.ndarray) -> _Heard:
        count = len(hidden_ND)
        most = np.full(count, -np.inf)
        return cls(source, hidden_ND, most, np.zeros(count, int), np.zeros(count), np.zeros(count))

    def hear(self, start: int, logits_NV: np.ndarray, targets_N: np.ndarray) -> None:
        """Take the logits of the tokens from `start` on."""
        here = (targets_N >= start) & (targets_N < start + logits_NV.shape[1])
        self.target_N[here] = logits_NV[here, targets_N[here] - start]
        most_N = logits_NV.max(axis=1).astype(np.float64)
        higher = most_N > self.most_N
        self.likeliest_N[higher] = start + logits_NV[higher].argmax(axis=1)
        most_N = np.maximum(most_N, self.most_N)
        with np.errstate(invalid="ignore"):  # of what is infinite; told below
            added = np.exp(logits_NV - most_N[:, None], dtype=np.float64).sum(axis=1)
            self.sum_N = self.sum_N * np.exp(self.most_N - most_N) + added
        self.most_N = most_N

    def loss(self, chosen_N: np.ndarray) -> float:
        """Mean negative log-likelihood of the right tokens at some positions."""
        return float((np.log(self.sum_N) + self.most_N - self.target_N)[chosen_N].mean())


@dataclass(slots=True)
class _Difference:
    """Of two voices' logits."""

    most: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        difference = np.abs(one - other)
        self.most = float(np.maximum(self.most, difference.max()))  # which keeps a NaN
        self.squares += float(np.square(difference, dtype=np.float64).sum())
        self.count += difference.size

    @property
    def root_mean_square(self) -> float:
        return float(np.sqrt(self.squares / self.count))


def measure(voices: Mapping[str, Voice], samples: Samples, choice: Choice, scratch: Path) -> Proof:
    """Let every voice read the samples.

    Args:
        voices: LIVE, BARE and EXPORT; MERGE where something was merged; FLOATS where live layers
            round what goes into them: twice what that makes is allowed, too.
        samples: the logits are looked at where they are supervised.
        choice: the engine.
        scratch: a folder for one block at a time.
    """
    rows = samples.rows
    sequences = [rows.row(r)[0].astype(np.int64) for r in range(len(rows))]
    hidden = through_all_blocks(voices, sequences, choice, scratch)
    supervised_N = rows.targets.supervised_N
    targets_N = rows.targets.ids_T[supervised_N].astype(np.int64)
    heard = {
        name: _Heard.nothing(
            voice.source, normed(voice.source, np.concatenate(hidden.pop(name))[supervised_N])
        )
        for name, voice in voices.items()
    }
    pairs = {pair: _Difference() for pair in ((EXPORT, LIVE), (LIVE, BARE))}
    pairs |= {(name, LIVE): _Difference() for name in (MERGE,) if name in voices}
    pairs |= {(name, BARE): _Difference() for name in (FLOATS,) if name in voices}
    largest = _listen(heard, pairs, targets_N)
    row_N = np.repeat(np.arange(len(rows)), rows.lengths_R)[supervised_N]
    over_N = row_N >= samples.fixed if samples.of_run else row_N >= 0
    between = pairs.get((FLOATS, BARE))
    merge = pairs.get((MERGE, LIVE))
    export = pairs[EXPORT, LIVE]
    return Proof(
        max_logit_difference=export.most,
        rms_logit_difference=export.root_mean_square,
        rms_adapter_effect=pairs[LIVE, BARE].root_mean_square,
        merge_logit_difference=None if merge is None else merge.most,
        allowed_logit_difference=FLOAT32_ERROR * max(1.0, largest)
        + (0.0 if between is None else 2 * between.most),
        top1_agreement=float((heard[EXPORT].likeliest_N == heard[LIVE].likeliest_N).mean()),
        positions=len(targets_N),
        rows_of_run=samples.of_run,
        loss_live=heard[LIVE].loss(over_N),
        loss_export=heard[EXPORT].loss(over_N),
        loss_base=heard[BARE].loss(over_N),
    )


def _listen(
    heard: Mapping[str, _Heard],
    pairs: Mapping[tuple[str, str], _Difference],
    targets_N: np.ndarray,
) -> float:
    """Take all logits, a piece of the vocabulary at a time.

    Returns:
        The largest absolute logit of the live adapter.
    """
    largest = 0.0
    sources = list({id(h.source): h.source for h in heard.values()}.values())
    for pieces in zip(*map(head_pieces, sources), strict=True):
        heads = {id(source): piece for source, piece in zip(sources, pieces, strict=True)}
        logits = {}
        for name, voice in heard.items():
            start, head_VD = heads[id(voice.source)]
            with np.errstate(all="ignore"):  # a false alarm of Accelerate on a Mac, numpy #28687
                logits[name] = voice.hidden_ND @ head_VD.T
            voice.hear(start, logits[name], targets_N)
        largest = max(largest, float(np.abs(logits[LIVE]).max()))
        for (one, other), difference in pairs.items():
            difference.add(logits[one], logits[other])
    return largest


def check(proof: Proof, *, merged: bool, mend: str) -> None:
    """Refuse an export that is not what was trained.

    Args:
        proof: the figures.
        merged: whether the export is a merge that was rounded, or quantized again; else it is an
            adapter, and must say what the live one says.
        mend: what to do where rounding loses the adapter.

    Raises:
        ExportError: it is not.
    """
    allowed = proof.allowed_logit_difference
    if not np.isfinite(proof.rms_adapter_effect):
        raise ExportError("the live adapter computes numbers that are not finite")
    if not np.isfinite(proof.max_logit_difference):
        raise ExportError("the export computes numbers that are not finite")
    if proof.rms_adapter_effect == 0:
        raise ExportError("the adapter changes nothing: its answers are those of the bare model")
    if not merged:
        _check_adapter(proof)
    elif proof.merge_logit_difference is None:
        _check_quantized(proof, mend)
    elif not proof.merge_logit_difference <= allowed:
        raise ExportError(
            f"the merge differs from the live adapter by {proof.merge_logit_difference:.2g} in its "
            f"logits; at most {allowed:.2g} would be rounding"
        )
    elif proof.rms_logit_difference > proof.rms_adapter_effect / 2:
        raise ExportError(
            f"rounding loses the adapter: logits differ by {proof.rms_logit_difference:.2g}, and "
            f"the adapter moves them by {proof.rms_adapter_effect:.2g} only\n\nhint: {mend}"
        )


def _check_adapter(proof: Proof) -> None:
    """Refuse an adapter that is not the live one, be it so weak that rounding could hide it."""
    allowed = proof.allowed_logit_difference
    weak = proof.rms_logit_difference > proof.rms_adapter_effect / 2
    if weak or not proof.max_logit_difference <= allowed:
        raise ExportError(
            f"the exported adapter differs from the live one by {proof.max_logit_difference:.2g} "
            f"in its logits; at most {allowed:.2g} would be rounding, and half of what the adapter "
            "does to them"
        )


def _check_quantized(proof: Proof, mend: str) -> None:
    """Refuse an export that is nearer to the bare base than to the adapter.

    By the loss, of which half may be lost, where the adapter lowers it; else by half of what it
    does to the logits.
    """
    gained = proof.loss_base - proof.loss_live
    if gained > 0:
        kept = proof.loss_export - proof.loss_live <= gained / 2
    else:
        kept = proof.rms_logit_difference <= proof.rms_adapter_effect / 2
    if not kept:
        raise ExportError(
            "quantized again, the model has lost more than half of what the adapter does: loss "
            f"{proof.loss_export:.4f}, {proof.loss_live:.4f} live, {proof.loss_base:.4f} without "
            "the adapter; logits differ by "
            f"{proof.rms_logit_difference:.2g}, and the adapter moves them by "
            f"{proof.rms_adapter_effect:.2g}\n\nhint: {mend}"
        )
