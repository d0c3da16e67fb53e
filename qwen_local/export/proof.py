"""Whether an exported model says what the live adapter says, measured.

The live adapter answers fixed prompts greedily. The same tokens then go through the exported model:
its logits are compared with the live ones at every token of the answers, and its loss on them, and
on rows of the run's own data where they are at hand. Everything is computed in float32.

Where the export rounds, two things are shown apart: that the merge before rounding says what the
live adapter says, and that every tensor in the files is that merge, rounded once (`merge.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qwen_local.backends.base import Backend
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.export.merge import ExportError
from qwen_local.rows import IGNORE, Rows

PROMPTS = (
    "Hello! Who are you?",
    "Write a Python function that returns the largest number of a list.",
    "Explain in two sentences why the sky is blue.",
    "Translate into French: Good morning, how did you sleep?",
    "List three animals that live in the sea.",
    "What is 17 times 23?",
    "Give a one-word answer: is water wet?",
    "请用一句话介绍北京。",
)
ANSWER_TOKENS = 32
ROUNDING = 1e-4
"""Allowed difference of float32 logits; where they exceed 1, as a share of the largest."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Tokens to measure on."""

    conversations: tuple[tuple[int, ...], ...]
    """Prompt and live answer of each fixed prompt."""
    answers: tuple[int, ...]
    """How many of their last tokens are answer."""
    rows: Rows
    """The same as rows, trained on the answers, and rows of the run's data behind them."""


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """What a model says of the samples."""

    logits: tuple[np.ndarray, ...]
    """float32 [answer + 1, V] of each conversation."""
    loss: float
    """Mean over the supervised tokens of all rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What `proof.json` says of an export, beside what it was made from."""

    max_logit_difference: float
    """Between the exported model and the live adapter."""
    rms_logit_difference: float
    """Root mean square of the same."""
    rms_adapter_effect: float
    """Root mean square of the difference between the live adapter and the bare base."""
    merge_logit_difference: float | None
    """The largest between the merge before it was rounded and the live adapter; None where that was
    quantised again at once."""
    top1_agreement: float
    """Share of positions whose likeliest token is the same."""
    positions: int
    """That logits were compared at."""
    loss_live: float
    loss_export: float
    loss_base: float
    tokens: int
    """That the losses are over."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)

    def describe(self) -> str:
        """The same for a person."""
        return (
            f"the same likeliest token at {self.top1_agreement:.1%} of {self.positions:,} "
            f"positions; loss over {self.tokens:,} tokens {self.loss_export:.4f} merged, "
            f"{self.loss_live:.4f} with the live adapter, {self.loss_base:.4f} without; largest "
            f"logit difference {self.max_logit_difference:.2g}{self._before_rounding()}"
        )

    def _before_rounding(self) -> str:
        if self.merge_logit_difference in (None, self.max_logit_difference):
            return ""
        return f", {self.merge_logit_difference:.2g} before rounding"


def make_samples(
    live: Backend, tokenizer: ChatTokenizer, extra: Rows | None, *, thinking: bool | None
) -> Samples:
    """Ask the live adapter the fixed prompts.

    Args:
        live: the engine with the adapter.
        tokenizer: of the model.
        extra: rows of the run's data, if they are at hand.
        thinking: `enable_thinking` of the prompts.
    """
    prompts = [
        tokenizer.encode_prompt([{"role": "user", "content": text}], enable_thinking=thinking)
        for text in PROMPTS
    ]
    said = live.generate(prompts, max_tokens=ANSWER_TOKENS, stop_ids=tokenizer.stop_ids)
    answers = [(*c.ids, c.stop_id) if c.stop_id is not None else c.ids for c in said]
    pairs = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = np.array([*prompt, *answer])
        targets = np.where(np.arange(1, len(ids)) >= len(prompt), ids[1:], IGNORE)
        pairs.append((ids[:-1], targets))
    if extra is not None:
        pairs += [extra.row(r) for r in range(len(extra))]
    return Samples(
        conversations=tuple((*p, *a) for p, a in zip(prompts, answers, strict=True)),
        answers=tuple(map(len, answers)),
        rows=Rows.from_pairs(pairs),
    )


def read(engine: Backend, samples: Samples) -> Readings:
    """Run the samples through a model."""
    logits = tuple(
        engine.logits(ids, last=count + 1)
        for ids, count in zip(samples.conversations, samples.answers, strict=True)
    )
    return Readings(logits, engine.score(samples.rows).mean)


def compare(
    live: Readings, base: Readings, export: Readings, merge: Readings | None, *, tokens: int
) -> Proof:
    """The figures, all positions of all prompts together.

    Args:
        live: of the adapter on its base.
        base: of the bare base.
        export: of the exported model.
        merge: of the merge in float32; None where there is none.
        tokens: supervised tokens of the samples.
    """
    theirs, ours, bare = (np.concatenate(r.logits) for r in (export, live, base))
    unrounded = None if merge is None else np.concatenate(merge.logits)
    return Proof(
        max_logit_difference=_largest(theirs - ours),
        rms_logit_difference=_root_mean_square(theirs - ours),
        rms_adapter_effect=_root_mean_square(ours - bare),
        merge_logit_difference=None if unrounded is None else _largest(unrounded - ours),
        top1_agreement=float((theirs.argmax(1) == ours.argmax(1)).mean()),
        positions=len(ours),
        loss_live=live.loss,
        loss_export=export.loss,
        loss_base=base.loss,
        tokens=tokens,
    )


def allowed_difference(live: Readings, *between: Readings) -> float:
    """How far the logits of a right merge may be from the live ones.

    Args:
        live: of the adapter on its base.
        between: of the bare base, live and with its weights as floats, where live layers round what
            goes into them (LLM.int8()): twice what that makes is allowed, too.
    """
    allowed = ROUNDING * max(1.0, *(float(np.abs(logits).max()) for logits in live.logits))
    if between:
        base, floats = (np.concatenate(readings.logits) for readings in between)
        allowed += 2 * _largest(base - floats)
    return allowed


def check(proof: Proof, *, allowed: float) -> None:
    """Refuse an export that is not what was trained.

    Args:
        proof: the figures.
        allowed: see `allowed_difference`.

    Raises:
        ExportError: it is not.
    """
    if not np.isfinite(proof.rms_adapter_effect):
        raise ExportError("the live adapter computes numbers that are not finite")
    if not np.isfinite(proof.max_logit_difference):
        raise ExportError("the exported model computes numbers that are not finite")
    if proof.rms_adapter_effect == 0:
        raise ExportError("the adapter changes nothing: its answers are those of the bare model")
    if proof.merge_logit_difference is None:
        _check_quantised(proof)
    elif proof.merge_logit_difference > allowed:
        raise ExportError(
            f"the merge differs from the live adapter by {proof.merge_logit_difference:.2g} in its "
            f"logits; at most {allowed:.2g} would be rounding"
        )
    elif proof.rms_logit_difference > proof.rms_adapter_effect / 2:
        raise ExportError(
            f"rounding loses the adapter: logits differ by {proof.rms_logit_difference:.2g}, and "
            f"the adapter moves them by {proof.rms_adapter_effect:.2g} only"
            "\n\nhint: pass --dtype float32"
        )


def _check_quantised(proof: Proof) -> None:
    """Refuse an export that is nearer to the bare base than to the adapter.

    By the loss, of which half may be lost, where the adapter lowers it; else by the logits.
    """
    gained = proof.loss_base - proof.loss_live
    if gained > 0:
        kept = proof.loss_export - proof.loss_live <= gained / 2
    else:
        kept = proof.rms_logit_difference <= proof.rms_adapter_effect
    if not kept:
        raise ExportError(
            "quantised again, the model has lost more than half of what the adapter does: loss "
            f"{proof.loss_export:.4f}, {proof.loss_live:.4f} live, {proof.loss_base:.4f} without "
            "the adapter; logits differ by "
            f"{proof.rms_logit_difference:.2g}, and the adapter moves them by "
            f"{proof.rms_adapter_effect:.2g}"
            "\n\nhint: leave --requantize out, or quantise to more bits"
        )


def _largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())


def _root_mean_square(difference: np.ndarray) -> float:
    return float(np.sqrt(np.square(difference, dtype=np.float64).mean()))
