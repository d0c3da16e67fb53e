"""The contract between the loop and an engine.

The loop owns order, schedule, evaluation, metrics and files. An engine owns the arithmetic of one
optimizer step. Sums cross this seam, never means: a mean of means is not the mean. Arrays cross it
as float32 numpy arrays under the names and in the layout that PEFT uses, so that what one engine
leaves another can take up.

Shapes: R = rows, N = supervised positions, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from qwen_local.job import LoraSpec
from qwen_local.models.source import ModelFiles
from qwen_local.rows import Rows

Arrays = Mapping[str, np.ndarray]

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
"""AdamW's constants in both engines (reference run R4; the defaults of transformers)."""

CLIP_EPSILON = 1e-6
"""Added to the norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does."""

HEAD_CHUNK = 128
"""Supervised positions whose logits exist at one time on a CPU."""

HEAD_CHUNK_GPU = 1024
"""The same on a GPU: 0.6 GB of float32 logits at 151,936 entries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """Everything an engine must know to be opened."""

    model: ModelFiles
    lora: LoraSpec | None
    """None opens the bare model, for generation."""
    device: Literal["cpu", "gpu"]
    dtype: Literal["float32", "bfloat16", "float16"]
    """What the frozen model is held in; adapters and moments are float32 always."""
    seed: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    """Gradients are scaled down to this norm; None leaves them as they are."""
    micro_batch_tokens: int = 2048
    """Padded positions that one forward pass may hold. Memory only: no effect on the update."""
    gradient_checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did."""

    loss_sum: float
    """Negative log-likelihood in nats, summed over the supervised positions of the step."""
    grad_norm: float
    """Norm of the mean gradient over all adapter arrays, before clipping."""
    learning_rate: float
    """The rate that the optimizer applied, read back from it."""
    finite: bool
    """False: loss or gradient was not finite and nothing was updated."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Per row: what the model thinks of its supervised tokens."""

    nll_R: np.ndarray
    """float64 [R]: sum of negative log-likelihoods in nats."""
    tokens_R: np.ndarray
    """int64 [R]: how many positions were summed."""

    @property
    def mean(self) -> float:
        """Mean over all supervised tokens of all rows."""
        return float(self.nll_R.sum() / self.tokens_R.sum())


@dataclass(frozen=True, slots=True)
class State:
    """All that training changes: enough to go on, on either engine."""

    adapter: Arrays
    """float32, PEFT names and layout."""
    exp_avg: Arrays
    """AdamW's first moment, same names and shapes."""
    exp_avg_sq: Arrays
    """AdamW's second moment, same names and shapes."""
    steps: int
    """Optimizer steps done."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated answer."""

    ids: tuple[int, ...]
    """Generated tokens, the stop token not among them."""
    finish_reason: Literal["stop", "length"]
    stop_id: int | None
    """The token that ended it."""


class Backend(Protocol):
    """The little that differs between the engines.

    Every row that is given has at least one supervised position.
    """

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        """One optimizer step, once: forward, backward, clip, AdamW.

        The gradient is that of sum(nll) / tokens. How rows are cut into micro-batches is the
        engine's business and does not change the update.

        Args:
            rows: every row of the step.
            lr: learning rate of this step.
            tokens: supervised positions of the step, known on the host beforehand.
        """
        ...

    def score(self, rows: Rows) -> Scores:
        """Negative log-likelihood of each row, dropout off."""
        ...

    def adapter(self) -> Arrays:
        """The adapter alone, float32, PEFT names and layout."""
        ...

    def state(self) -> State:
        """Adapter and optimizer."""
        ...

    def load_adapter(self, adapter: Arrays) -> None:
        """Take these adapter arrays; the optimizer starts anew."""
        ...

    def load_state(self, state: State) -> None:
        """Go on from a state that either engine gave."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop_ids: Sequence[int]
    ) -> list[Completion]:
        """Greedy continuations of tokenised prompts, in their order."""
        ...

    def peak_memory_bytes(self) -> int:
        """Peak so far: device memory on a GPU, resident memory of the process on a CPU."""
        ...


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """The key of one micro-batch's dropout; 63 bits, from these three numbers alone.

    No generator state needs storing: a step that is repeated or resumed draws the same masks.

    >>> dropout_seed(0, 1, 0) == dropout_seed(0, 1, 0) != dropout_seed(0, 1, 1)
    True
    """
    entropy = np.random.SeedSequence([seed, step, micro_batch])
    return int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))


def peak_resident_bytes() -> int:
    """Peak resident memory of this process."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # Linux counts KiB
