"""Proof of an export: measure the difference from the live adapter.

The same tokens go through the live adapter, the base model and the export: fixed conversations, and
rows of the run's own data if they are available. Logits and loss are compared at every supervised
position. Everything is computed in float32, block by block (`blocks.py`), so that the proof needs
the memory of one block only.

If an export rounds, there are two separate proofs: the merge before rounding computes the same as
the live adapter, and every tensor in the files is that merge, rounded once (`merge.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_local.export.blocks import Variant, WeightSource, head_chunks, last_norm, run_blocks
from qwen_local.export.merge import ExportError
from qwen_local.export.samples import Samples
from qwen_local.resolve.resolve import Resolved

FLOAT32_ERROR = 1e-4
"""Allowed difference of float32 logits, relative to the largest logit if that exceeds 1."""

LIVE, BASE, EXPORT, MERGE = "live", "base", "export", "merge"
"""Variants: the live adapter on its base model, the base model alone, the export, and the merge
before rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """Measurements in `proof.json`."""

    max_logit_difference: float
    """Between the export and the live adapter."""
    rms_logit_difference: float
    """Root mean square of the same difference."""
    rms_adapter_effect: float
    """Root mean square difference between the live adapter and the base model."""
    merge_logit_difference: float | None
    """Largest difference between the unrounded merge and the live adapter; None if nothing was
    merged, or if the merge was quantized again at once."""
    allowed_logit_difference: float
    """Bound that float32 rounding explains, for the merge or, without one, for the export."""
    top1_agreement: float
    """Share of positions with the same greedy token."""
    positions: int
    """Number of compared positions."""
    rows_of_run: int
    """Rows of the run's own data among them; the losses are over these. If 0, the losses are over
    the fixed conversations and do not show what the adapter learned."""
    loss_live: float
    """Mean negative log-likelihood in nats."""
    loss_export: float
    loss_base: float

    def describe(self) -> str:
        """Summarize it in one line."""
        same = (
            f"proved: same greedy token as the live adapter at {self.top1_agreement:.1%} of "
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
class _Statistics:
    """Statistics of a variant's logits at N positions, gathered over chunks of the vocabulary."""

    source: WeightSource
    hidden_ND: np.ndarray
    max_N: np.ndarray
    """Largest logit so far."""
    greedy_N: np.ndarray
    """Its token."""
    sum_N: np.ndarray
    """float64: sum of exp(logit - max_N) so far."""
    target_N: np.ndarray
    """Logit of the target token."""

    @classmethod
    def empty(cls, source: WeightSource, hidden_ND: np.ndarray) -> _Statistics:
        count = len(hidden_ND)
        max_N = np.full(count, -np.inf)
        return cls(source, hidden_ND, max_N, np.zeros(count, int), np.zeros(count), np.zeros(count))

    def add(self, start: int, logits_NV: np.ndarray, targets_N: np.ndarray) -> None:
        """Add the logits of a chunk of tokens, from `start` on."""
        here = (targets_N >= start) & (targets_N < start + logits_NV.shape[1])
        self.target_N[here] = logits_NV[here, targets_N[here] - start]
        max_N = logits_NV.max(axis=1).astype(np.float64)
        higher = max_N > self.max_N
        self.greedy_N[higher] = start + logits_NV[higher].argmax(axis=1)
        max_N = np.maximum(max_N, self.max_N)
        with np.errstate(invalid="ignore"):  # from infinite logits, which `check` reports
            added = np.exp(logits_NV - max_N[:, None], dtype=np.float64).sum(axis=1)
            self.sum_N = self.sum_N * np.exp(self.max_N - max_N) + added
        self.max_N = max_N

    def loss(self, chosen_N: np.ndarray) -> float:
        """Return the mean negative log-likelihood of the targets at some positions."""
        return float((np.log(self.sum_N) + self.max_N - self.target_N)[chosen_N].mean())


@dataclass(slots=True)
class _Difference:
    """Running difference between the logits of two variants."""

    largest: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        difference = np.abs(one - other)
        self.largest = float(np.maximum(self.largest, difference.max()))  # which keeps a NaN
        self.squares += float(np.square(difference, dtype=np.float64).sum())
        self.count += difference.size

    @property
    def root_mean_square(self) -> float:
        return float(np.sqrt(self.squares / self.count))


def measure(
    variants: Mapping[str, Variant], samples: Samples, resolved: Resolved, scratch: Path
) -> Proof:
    """Run every variant over the samples and compare them.

    Args:
        variants: LIVE, BASE and EXPORT; MERGE if something was merged.
        samples: compared at supervised positions.
        resolved: the base model's engine.
        scratch: a folder for one block at a time.
    """
    rows = samples.rows
    sequences = [rows.row(r)[0].astype(np.int64) for r in range(len(rows))]
    hidden = run_blocks(variants, sequences, resolved, scratch)
    supervised_N = rows.targets.supervised_N
    targets_N = rows.targets.ids_T[supervised_N].astype(np.int64)
    statistics = {
        name: _Statistics.empty(
            variant.source,
            last_norm(variant.source, np.concatenate(hidden.pop(name))[supervised_N]),
        )
        for name, variant in variants.items()
    }
    pairs = {pair: _Difference() for pair in ((EXPORT, LIVE), (LIVE, BASE))}
    pairs |= {(name, LIVE): _Difference() for name in (MERGE,) if name in variants}
    largest = _compare_logits(statistics, pairs, targets_N)
    row_N = np.repeat(np.arange(len(rows)), rows.lengths_R)[supervised_N]
    over_N = row_N >= samples.fixed if samples.of_run else row_N >= 0
    merge = pairs.get((MERGE, LIVE))
    export = pairs[EXPORT, LIVE]
    same_N = statistics[EXPORT].greedy_N == statistics[LIVE].greedy_N
    return Proof(
        max_logit_difference=export.largest,
        rms_logit_difference=export.root_mean_square,
        rms_adapter_effect=pairs[LIVE, BASE].root_mean_square,
        merge_logit_difference=None if merge is None else merge.largest,
        allowed_logit_difference=FLOAT32_ERROR * max(1.0, largest),
        top1_agreement=float(same_N.mean()),
        positions=len(targets_N),
        rows_of_run=samples.of_run,
        loss_live=statistics[LIVE].loss(over_N),
        loss_export=statistics[EXPORT].loss(over_N),
        loss_base=statistics[BASE].loss(over_N),
    )


def _compare_logits(
    statistics: Mapping[str, _Statistics],
    pairs: Mapping[tuple[str, str], _Difference],
    targets_N: np.ndarray,
) -> float:
    """Compute all logits, one chunk of the vocabulary at a time, and compare them.

    Returns:
        The largest absolute logit of the live adapter.
    """
    largest = 0.0
    sources = list({id(s.source): s.source for s in statistics.values()}.values())
    for chunks in zip(*map(head_chunks, sources), strict=True):
        heads = {id(source): chunk for source, chunk in zip(sources, chunks, strict=True)}
        logits = {}
        for name, variant in statistics.items():
            start, head_VD = heads[id(variant.source)]
            with np.errstate(all="ignore"):  # a false alarm of Accelerate on a Mac, numpy #28687
                logits[name] = variant.hidden_ND @ head_VD.T
            variant.add(start, logits[name], targets_N)
        largest = max(largest, float(np.abs(logits[LIVE]).max()))
        for (one, other), difference in pairs.items():
            difference.add(logits[one], logits[other])
    return largest


def check(proof: Proof, *, merged: bool, hint: str) -> None:
    """Refuse an export that differs from what was trained.

    Args:
        proof: the measurements.
        merged: True if the export is a merge that was rounded or quantized again; otherwise it is
            an adapter and must compute the same as the live one.
        hint: fix for the case that rounding loses the adapter.

    Raises:
        ExportError: it differs.
    """
    allowed = proof.allowed_logit_difference
    if not np.isfinite(proof.rms_adapter_effect):
        raise ExportError("the live adapter computes values that are not finite")
    if not np.isfinite(proof.max_logit_difference):
        raise ExportError("the export computes values that are not finite")
    if proof.rms_adapter_effect == 0:
        raise ExportError("the adapter has no effect: its logits equal those of the base model")
    if not merged:
        _check_adapter(proof)
    elif proof.merge_logit_difference is None:
        _check_quantized(proof, hint)
    elif not proof.merge_logit_difference <= allowed:
        raise ExportError(
            f"the logits of the merge differ by {proof.merge_logit_difference:.2g} from those of "
            f"the live adapter; rounding explains at most {allowed:.2g}"
        )
    elif proof.rms_logit_difference > proof.rms_adapter_effect / 2:
        raise ExportError(
            f"rounding loses the adapter: it changes the logits by {proof.rms_logit_difference:.2g}"
            f", the adapter by only {proof.rms_adapter_effect:.2g}\n\nhint: {hint}"
        )


def _check_adapter(proof: Proof) -> None:
    """Refuse an adapter that differs from the live one, even if its effect is tiny."""
    allowed = proof.allowed_logit_difference
    weak = proof.rms_logit_difference > proof.rms_adapter_effect / 2
    if weak or not proof.max_logit_difference <= allowed:
        raise ExportError(
            f"the logits of the exported adapter differ by {proof.max_logit_difference:.2g} from "
            f"those of the live one; rounding explains at most {allowed:.2g}, and at most half of "
            "the adapter's effect"
        )


def _check_quantized(proof: Proof, hint: str) -> None:
    """Refuse an export that is closer to the base model than to the live adapter.

    If the adapter lowers the loss, the export may lose half of that; otherwise the logits may
    differ by half of the adapter's effect.
    """
    gain = proof.loss_base - proof.loss_live
    if gain > 0:
        close = proof.loss_export - proof.loss_live <= gain / 2
    else:
        close = proof.rms_logit_difference <= proof.rms_adapter_effect / 2
    if not close:
        raise ExportError(
            "quantizing again loses more than half of the adapter's effect: loss "
            f"{proof.loss_export:.4f}, {proof.loss_live:.4f} live, {proof.loss_base:.4f} without "
            "the adapter; it changes the logits by "
            f"{proof.rms_logit_difference:.2g}, the adapter by {proof.rms_adapter_effect:.2g}"
            f"\n\nhint: {hint}"
        )
