"""Whether an exported model says what the live adapter says, measured.

The live adapter answers fixed prompts greedily. The same tokens then go through the exported model:
its logits are compared with the live ones at every token of the answers, and its loss on them, and
on rows of the run's own data where they are at hand. Everything is computed in float32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qwen_local.backends.base import Backend
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import QwenLocalError
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
"""Allowed difference of float32 logits, as a share of the largest."""


class ExportError(QwenLocalError):
    """The exported model is not what was trained; nothing was left at its place."""


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
    """What `proof.json` says."""

    max_logit_difference: float
    """Between the exported model and the live adapter."""
    allowed_logit_difference: float | None
    """None where the export rounds or quantises: then the adapter's own effect is the measure."""
    mean_logit_difference: float
    """Root of the mean square."""
    mean_adapter_effect: float
    """The same between the live adapter and the bare base."""
    top1_agreement: float
    """Share of positions whose likeliest token is the same."""
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
            f"largest logit difference {self.max_logit_difference:.2g}, the same likeliest token "
            f"at {self.top1_agreement:.1%} of {self.tokens:,} tokens; loss {self.loss_live:.4f} "
            f"live, {self.loss_export:.4f} exported, {self.loss_base:.4f} without the adapter"
        )


def make_samples(live: Backend, tokenizer: ChatTokenizer, extra: Rows | None) -> Samples:
    """Ask the live adapter the fixed prompts.

    Args:
        live: the engine with the adapter.
        tokenizer: of the model.
        extra: rows of the run's data, if they are at hand.
    """
    thinking = tokenizer.thinking_as_trained()
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


def compare(live: Readings, base: Readings, export: Readings, *, exact: bool, tokens: int) -> Proof:
    """The figures, all positions of all prompts together.

    Args:
        live: of the adapter on its base.
        base: of the bare base.
        export: of the exported model.
        exact: whether it holds float32, so that only rounding may differ.
        tokens: supervised tokens of the samples.
    """
    theirs, ours, bare = (np.concatenate(r.logits) for r in (export, live, base))
    return Proof(
        max_logit_difference=float(np.abs(theirs - ours).max()),
        allowed_logit_difference=ROUNDING * max(1.0, float(np.abs(ours).max())) if exact else None,
        mean_logit_difference=_root_mean_square(theirs - ours),
        mean_adapter_effect=_root_mean_square(ours - bare),
        top1_agreement=float((theirs.argmax(1) == ours.argmax(1)).mean()),
        loss_live=live.loss,
        loss_export=export.loss,
        loss_base=base.loss,
        tokens=tokens,
    )


def check(proof: Proof, *, quantised: bool) -> None:
    """Refuse an export that is not what was trained.

    Args:
        proof: the figures.
        quantised: whether the export was quantised again: then its loss must stay below that of the
            bare base; otherwise its logits must be nearer to the live ones than half the way to the
            bare base's.

    Raises:
        ExportError: it is not.
    """
    if proof.mean_adapter_effect == 0:
        raise ExportError("the adapter changes nothing: its answers are those of the bare model")
    if not np.isfinite(proof.max_logit_difference):
        raise ExportError("the exported model computes numbers that are not finite")
    allowed = proof.allowed_logit_difference
    if allowed is not None and proof.max_logit_difference > allowed:
        raise ExportError(
            f"the exported model differs from the live adapter by {proof.max_logit_difference:.2g} "
            f"in its logits; {allowed:.2g} would be rounding"
        )
    if quantised:
        if proof.loss_export >= proof.loss_base:
            raise ExportError(
                f"quantised again, the model has lost the adapter: loss {proof.loss_export:.4f}, "
                f"{proof.loss_base:.4f} without the adapter, {proof.loss_live:.4f} with it"
                "\n\nhint: leave --requantize out, or try --requantize 8bit"
            )
    elif proof.mean_logit_difference > proof.mean_adapter_effect / 2:
        raise ExportError(
            f"rounding loses the adapter: logits differ by {proof.mean_logit_difference:.2g}, and "
            f"the adapter moves them by {proof.mean_adapter_effect:.2g} only"
            "\n\nhint: pass --dtype float32"
        )


def _root_mean_square(difference: np.ndarray) -> float:
    return float(np.sqrt(np.square(difference, dtype=np.float64).mean()))
