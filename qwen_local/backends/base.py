"""The contract between the loop and an engine.

The loop owns order, schedule, evaluation, metrics and files. An engine owns the arithmetic of one
optimizer step. Sums cross this seam, never means: a mean of means is not the mean. Arrays cross it
as float32 numpy arrays under the names and in the layout that PEFT uses, so that what one engine
leaves another can take up.

Shapes: R = rows, N = supervised positions, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from qwen_local.job.schema import LoraSpec, Quantization
from qwen_local.models.source import ModelFiles
from qwen_local.rows.planner import Layout
from qwen_local.rows.rows import Rows
from qwen_local.rows.scores import Scores

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

HEAD_CHUNK_MLX = 64
"""The same under MLX on a CPU, which allocates ahead of computing: with 128 the head alone was 4 to
9 % faster, and the process took 75 MB more of 500 (vocabularies of 151,936 and 32,000)."""

MLX_CACHE_BYTES = {"cpu": 8 << 20, "gpu": 2 << 30}
"""Freed buffers that MLX may keep; without a limit the footprint only grows (mlx-lm #828). On a CPU
it uses one again for arrays of the same size to two pages, so next to none serves a later step:
with 32 or 256 MiB a step was no faster (hidden 256 and 512, both vocabularies), with none 5 %
slower."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """Everything an engine must know to be opened."""

    model: ModelFiles
    lora: LoraSpec | None
    """None opens the bare model, for generation."""
    dora: bool = False
    """Whether the adapter has magnitudes, as a DoRA that others made; to be asked, not trained."""
    device: Literal["cpu", "gpu"]
    dtype: Literal["float32", "bfloat16", "float16"]
    """What the frozen model computes in; adapters and moments are float32 always."""
    quantization: Quantization = "none"
    """What the blocks' linear layers are held in; `none` leaves them as the files have them."""
    seed: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    """Gradients are scaled down to this norm; None leaves them as they are."""
    micro_batch_tokens: int = 2048
    """Positions that one forward pass may hold, padding among them. Memory only: no effect on the
    update."""
    widths: tuple[int, ...] = ()
    """Of micro-batches, rising, where every shape is compiled; none for any width."""
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
    positions: int
    """Computed for it, padding among them."""


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


class RowTooLargeError(Exception):
    """Memory ran out over a single row."""

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
    """Generated tokens, the stop token not among them."""
    finish_reason: Literal["stop", "length", "interrupted"]
    stop_id: int | None
    """The token that ended it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is drawn. The defaults take the likeliest."""

    temperature: float = 0.0
    """0 takes the likeliest token; the other settings but the penalty then have no effect."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""
    top_k: int = 0
    """Only this many tokens; 0 for all."""
    min_p: float = 0.0
    """Only tokens at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that occurred, and multiplies negative ones."""
    seed: int = 0
    """Of the draws: the same prompt, settings and seed give the same answer on an engine."""


class Session(Protocol):
    """One conversation: what was computed for it is kept for its next turn."""

    def reply(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling,
        emit: Callable[[int], bool],
    ) -> Completion:
        """Go on from a prompt.

        Only what differs from the turns before is computed: keys and values are kept for as long as
        the tokens are the same.

        Args:
            prompt: the whole conversation, at least one token.
            max_tokens: the most to generate.
            stop_ids: tokens that end the answer; they are not emitted.
            sampling: how tokens are drawn.
            emit: called with each token as it comes; False ends the answer as `interrupted`.

        Whatever leaves this call (an exception of `emit`, too) leaves a session that can go on.
        """
        ...


class Backend(Protocol):
    """The little that differs between the engines.

    Every row that is given has at least one supervised position.
    """

    def step(self, rows: Rows, *, lr: float, tokens: int) -> StepResult:
        """One optimizer step, once: forward, backward, clip, AdamW.

        The gradient is that of sum(nll) / tokens. How rows are cut into micro-batches is the
        engine's business and does not change the update.

        Where memory runs out, the budget of a micro-batch is halved for good and the same step
        begins again; nothing is counted twice.

        Args:
            rows: every row of the step.
            lr: learning rate of this step.
            tokens: supervised positions of the step, known on the host beforehand.

        Raises:
            RowTooLargeError: memory does not hold even a micro-batch of one row; nothing is
                updated.
        """
        ...

    def rehearse(self, rows: Rows) -> int:
        """Everything that `step` does with these rows but the update.

        They are one micro-batch, where the budget holds them. Afterwards the optimizer's arrays are
        there, so that the peak of memory is that of a step.

        Returns:
            Positions computed, padding among them.

        Raises:
            RowTooLargeError: as `step`.
        """
        ...

    def score(self, rows: Rows) -> Scores:
        """Negative log-likelihood of each row, dropout off.

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
        """How the rows of a micro-batch lie together."""
        ...

    def adapter(self) -> Arrays:
        """The adapter alone, float32, PEFT names and layout."""
        ...

    def state(self) -> State:
        """Adapter and optimizer."""
        ...

    def load_adapter(self, adapter: Arrays) -> None:
        """Take these adapter arrays; the optimizer starts anew.

        Sessions that are open compute with them from here on, and keep what they have computed.
        """
        ...

    def load_state(self, state: State) -> None:
        """Go on from a state that either engine gave."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop_ids: Sequence[int]
    ) -> list[Completion]:
        """Greedy continuations of tokenized prompts, in their order."""
        ...

    def session(self) -> Session:
        """A new conversation on this model, for streaming answers."""
        ...

    def logits(self, ids: Sequence[int], *, last: int) -> np.ndarray:
        """What the model expects after each of the last tokens: float32 [last, V]."""
        ...

    def through_blocks(self, hidden: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What enters the blocks -> what leaves them, before the last norm.

        Args:
            hidden: float32 [T, D] of each sequence, which begin at position 0.

        Returns:
            The same shapes, float32.
        """
        ...

    def peak_memory_bytes(self) -> int:
        """Peak so far: device memory on a GPU, resident memory of the process on a CPU."""
        ...


QUANTIZED_BITS: Mapping[Quantization, int] = {"4bit": 4, "8bit": 8}


class Weights(Protocol):
    """The `model*.safetensors` of a folder, one tensor at a time: what an export reads and writes.

    An engine's own library does it, because only that knows the engine's codes.
    """

    def read(
        self, name: str, quantization: Quantization = "none", rows: slice | None = None
    ) -> np.ndarray:
        """A tensor as an engine that trains on it holds it, float32.

        Args:
            name: as in `Architecture.weight_shapes`.
            quantization: what it is quantized to when it is loaded; `none` for what is not, and
                wherever the file holds codes, which are read as the floats that they stand for.
            rows: of a matrix that is not quantized when it is loaded: only these.
        """
        ...

    def cut(self, path: Path, block: int) -> None:
        """Write one block, as the files hold it, as the whole model: see `export/blocks.py`.

        Args:
            path: of the safetensors file.
            block: its number.
        """
        ...

    def encode(
        self, name: str, array: np.ndarray, *, dtype: str, quantization: Quantization
    ) -> dict[str, Any]:
        """What a file holds of a float32 array: the library's own arrays, by name.

        Args:
            name: of the array.
            array: float32.
            dtype: what it is rounded to.
            quantization: what it is then quantized to.
        """
        ...

    def write(self, path: Path, parts: Mapping[str, Any]) -> None:
        """Write what `encode` gave as a safetensors file."""
        ...

    def config(self, quantization: Quantization, dtype: str) -> dict[str, Any]:
        """What config.json says of files whose weights `encode` quantized."""
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

    # On Linux `ru_maxrss` of a process begins with that of the one which started it, however large.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # Linux counts KiB
