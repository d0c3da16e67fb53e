"""The contract between the training loop and an engine.

The loop owns order, schedule, evaluation, metrics and files. An engine owns the arithmetic of one
optimizer step. Sums cross this seam, never means: a mean of means is not the mean. Arrays cross it
as float32 numpy arrays under PEFT's names and in PEFT's layout, so that either engine can continue
from the state of the other.

Shapes: R = rows, N = supervised positions, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from qwen_local.backends.group import ALONE, Group
from qwen_local.job.schema import LoraSpec, Quantization
from qwen_local.models.source import ModelFiles
from qwen_local.rows.planner import Layout
from qwen_local.rows.rows import Rows
from qwen_local.rows.scores import Scores

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """Everything an engine must know to open a model."""

    model: ModelFiles
    lora: LoraSpec | None
    """None opens the bare model, for generation."""
    dora: bool = False
    """True if the adapter has magnitudes, as DoRA adapters from other tools do (inference only)."""
    device: Literal["cpu", "gpu"]
    dtype: Literal["float32", "bfloat16", "float16"]
    """Dtype that the frozen model computes in; adapters and moments are always float32."""
    quantization: Quantization = "none"
    """Format of the blocks' linear layers; `none` leaves them as the files have them."""
    seed: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    """Gradients are scaled down to this norm; None leaves them as they are."""
    micro_batch_tokens: int = 2048
    """Positions that one forward pass may hold, padding included. Memory only: no effect on the
    update."""
    widths: tuple[int, ...] = ()
    """Widths of micro-batches, rising, where every shape is compiled; empty for any width."""
    gradient_checkpointing: bool = False
    cuda_graphs: bool = False
    """Pad micro-batches to few shapes, and record each as a CUDA graph where there is a card."""
    group: Group = ALONE
    """Ranks that train together; by default this process alone."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Figures of one optimizer step."""

    loss_sum: float
    """Negative log-likelihood in nats, summed over the step's supervised positions on all ranks."""
    grad_norm: float
    """Norm of the mean gradient over all adapter arrays, before clipping."""
    learning_rate: float
    """The rate that the optimizer applied, read back from it."""
    finite: bool
    """False: loss or gradient was not finite and nothing was updated."""
    positions: int
    """Positions computed by this rank, padding included."""


@dataclass(frozen=True, slots=True)
class AdapterState:
    """Adapter and optimizer: everything that training changes. Either engine resumes from it."""

    adapter: Arrays
    """float32, PEFT names and layout."""
    exp_avg: Arrays
    """AdamW's first moment, same names and shapes."""
    exp_avg_sq: Arrays
    """AdamW's second moment, same names and shapes."""
    steps: int
    """Optimizer steps done."""


class RowTooLargeError(Exception):
    """A single row does not fit in memory."""

    def __init__(self, row: int, length: int) -> None:
        super().__init__(row, length)
        self.row = row
        """Its index among the rows that the engine was given."""
        self.length = length
        """Its positions."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated answer."""

    ids: tuple[int, ...]
    """Generated tokens without the stop token."""
    finish_reason: Literal["stop", "length", "interrupted"]
    stop_id: int | None
    """The token that ended it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Rules for drawing the next token. The defaults are greedy."""

    temperature: float = 0.0
    """0 is greedy; the other settings except the penalty then have no effect."""
    top_p: float = 1.0
    """Keep the most probable tokens that together have this probability."""
    top_k: int = 0
    """Keep this many tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens whose probability is at least this share of the highest."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that occurred, and multiplies negative ones."""
    seed: int = 0
    """Same prompt, settings and seed: same answer on the same engine."""


class Session(Protocol):
    """One conversation, which keeps the keys and values of its turns."""

    def reply(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling,
        emit: Callable[[int], bool],
    ) -> Completion:
        """Continue a prompt.

        Only tokens after the longest prefix shared with earlier turns are computed.

        Args:
            prompt: the whole conversation, at least one token.
            max_tokens: the most to generate.
            stop_ids: tokens that end the answer; they are not emitted.
            sampling: rules for drawing tokens.
            emit: called with each token as it comes; returning False ends the answer as
                `interrupted`.

        The session can be used again after any exception, including one raised by `emit`.
        """
        ...


class Backend(Protocol):
    """The little that differs between the engines.

    Every row given to it has at least one supervised position.
    """

    # Training.

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        """Take one optimizer step: forward, backward, clip, AdamW.

        The gradient is that of sum(nll) / tokens, summed over all ranks. Cutting rows into
        micro-batches is up to the engine and does not change the update.

        If memory runs out, the micro-batch budget is halved for good and the same step starts
        again; nothing is counted twice.

        Args:
            rows: every row of the step that belongs to this rank.
            lr: learning rate of this step.
            tokens: supervised positions of the step on all ranks, known on the host beforehand.

        Raises:
            RowTooLargeError: not even a micro-batch of one row fits in memory; nothing is updated.
        """
        ...

    def warm_up(self, rows: Rows) -> int:
        """Do everything that `step` does with these rows except the update.

        They are one micro-batch if the budget allows it. Afterwards the optimizer's arrays exist,
        so that peak memory is that of a step.

        Returns:
            Positions computed, padding included.

        Raises:
            RowTooLargeError: as `step`.
        """
        ...

    @property
    def micro_batch_tokens(self) -> int:
        """Positions of one forward pass: as set up, and halved whenever memory ran out."""
        ...

    @property
    def layout(self) -> Layout:
        """Arrangement of the rows of a micro-batch."""
        ...

    def peak_memory_bytes(self) -> int:
        """Return the peak so far: device memory on a GPU, resident memory on a CPU."""
        ...

    # State.

    def adapter(self) -> Arrays:
        """Return the adapter alone, float32, PEFT names and layout."""
        ...

    def state(self) -> AdapterState:
        """Return adapter and optimizer."""
        ...

    def load_adapter(self, adapter: Arrays) -> None:
        """Load adapter arrays, on all ranks those of the first, and reset the optimizer.

        Open sessions compute with them from here on, and keep the keys and values of their turns.
        """
        ...

    def load_state(self, state: AdapterState) -> None:
        """Resume from a state of either engine; all ranks from that of the first."""
        ...

    # Inference.

    def score(self, rows: Rows) -> Scores:
        """Compute the negative log-likelihood of each row, without dropout.

        Raises:
            RowTooLargeError: as `step`.
        """
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop_ids: Sequence[int]
    ) -> list[Completion]:
        """Return greedy completions of tokenized prompts, in their order."""
        ...

    def session(self) -> Session:
        """Start a new conversation on this model, for streamed answers."""
        ...

    # Proof of an export.

    def logits(self, ids: Sequence[int], *, last: int) -> np.ndarray:
        """Return the logits after each of the last tokens: float32 [last, V]."""
        ...

    def through_blocks(self, hidden: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Compute the output of the last block, before the last norm, from hidden states.

        Args:
            hidden: float32 [T, D] of each sequence, which starts at position 0.

        Returns:
            The same shapes, float32.
        """
        ...
