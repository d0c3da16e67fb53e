"""The share of the machine's matrix-product rate that a training step reaches.

    python -m benchmarks.roofline
    python -m benchmarks.roofline --device gpu --only Qwen3-8B --output -

A step of the PyTorch engine (LoRA, rank 16, all linear layers, no dropout, no checkpointing) and
bare `torch.mm` take turns in one process: both see the same threads, clocks and neighbors. The
products have the shapes of the model's own layers, forward and backward, in the step's dtype. The
share of a round is

    (operations that the step needs / its seconds) / (rate of the products before and after it)

and what is reported is the median of the rounds. What a step needs is counted (`operations`), never
what it did: padding, recomputation or a head over the prompt only make the share smaller.
"""

from __future__ import annotations

import argparse
import datetime
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.made_rows import made_rows
from benchmarks.parts import Device, skipped
from benchmarks.peers.models import make_model
from benchmarks.result import RESULTS, machine, write
from benchmarks.timing import release, timed
from qwen_local.backends.base import Backend, RowTooLargeError, Setup
from qwen_local.job.schema import LoraSpec
from qwen_local.models.architecture import Architecture
from qwen_local.models.source import ModelFiles, fetch, find_model
from qwen_local.rows.rows import Rows

if TYPE_CHECKING:
    import torch

MODELS: dict[Device, tuple[str, ...]] = {
    "cpu": ("small",),
    "gpu": ("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-8B"),
}
CASES: dict[Device, tuple[tuple[str, int], ...]] = {
    "cpu": (("long", 1), ("long", 4), ("code-alpaca", 4)),
    "gpu": (("long", 1), ("long", 4), ("code-alpaca", 16)),
}
"""(workload, rows of a step)."""
MICRO_BATCH_TOKENS: dict[Device, int] = {"cpu": 4096, "gpu": 16_384}
DTYPES: dict[Device, Literal["float32", "bfloat16"]] = {"cpu": "float32", "gpu": "bfloat16"}
ROUNDS = 7
RANK, RATE = 16, 1e-4
HEAD_ROWS = 1024
"""Rows of the head's bare product: as fast as any number of them, and no more than memory holds."""
AT_LEAST = 0.1
"""Seconds of bare products in a round; one on a fast card is over before it can be timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operations:
    """Floating-point operations of a step, a multiplication with its addition counted as two."""

    blocks: int
    """The frozen linear layers of the blocks."""
    lora: int
    head: int
    attention: int
    """The products of queries with keys and of probabilities with values."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.blocks + self.lora + self.head + self.attention


def operations(
    architecture: Architecture, lengths: Sequence[int], supervised: int, *, rank: int
) -> Operations:
    """What one step over rows of these lengths needs, with LoRA on every linear layer.

    N weights of frozen layers cost 2 N a position forward and 2 N backward: they have no gradient.
    Nor has the embedding, so nothing goes back through what the first block's queries, keys and
    values are made of; and behind the attention of the last block only the supervised positions are
    of use. LoRA's two factors cost the same each way, and once more for their own gradients. The
    head is needed where a token is supervised: the logits, and the gradient of the hidden state.
    Causal attention looks at T (T + 1) / 2 pairs of positions, in 2 products forward and 4 backward
    (a fifth, the probabilities formed again as in arXiv:2205.14135, saves memory and is not
    needed). Norms, rotations and activations are not counted.

    Args:
        architecture: of the model.
        lengths: positions of each row.
        supervised: positions of all rows that are trained.
        rank: of the adapter.
    """
    positions, layers = sum(lengths), architecture.layers
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    frozen = factors = not_back = not_back_lora = 0
    for name, (out, into) in architecture.linear_shapes().items():
        passes = positions * layers  # of a position through such a layer
        if name in ("q_proj", "k_proj", "v_proj"):
            not_back += positions * out * into
            not_back_lora += positions * rank * into
        else:
            passes -= positions - supervised
        frozen += passes * out * into
        factors += passes * rank * (out + into)
    product = 2 * pairs * architecture.heads * architecture.head_dim
    return Operations(
        blocks=2 * (2 * frozen - not_back),
        lora=2 * (3 * factors - not_back_lora),
        head=4 * supervised * architecture.vocabulary * architecture.hidden,
        attention=6 * layers * product,
    )


def rate_for(wanted: Operations, blocks: float, head: float) -> float:
    """Operations a second of bare products in the proportion that a step needs them.

    Args:
        wanted: by the step.
        blocks: rate of the products of a block's layers.
        head: rate of the head's products.
    """
    elsewhere = wanted.total - wanted.head
    return wanted.total / (elsewhere / blocks + wanted.head / head)


class Products:
    """Bare matrix products in the shapes of a model's layers, forward and backward."""

    def __init__(
        self, architecture: Architecture, positions: int, head_rows: int, device: Device
    ) -> None:
        """Make the matrices.

        Args:
            architecture: of the model.
            positions: rows of the blocks' products: those of a micro-batch.
            head_rows: the same of the head's.
            device: where, which decides the dtype.
        """
        self._device: Device = device
        shapes = list(architecture.linear_shapes().values())
        # Two blocks in turn, so that no cache serves a weight that the model reads from memory.
        self._blocks = [self._pair(positions, *shape) for _ in range(2) for shape in shapes]
        self._head = [self._pair(head_rows, architecture.vocabulary, architecture.hidden)]

    def _pair(self, rows: int, out: int, into: int) -> tuple[torch.Tensor, ...]:
        """(weight [out, into], input [rows, into], output [rows, out], where its gradient goes)."""
        import torch

        dtype = getattr(torch, DTYPES[self._device])
        place = torch.device("cpu" if self._device == "cpu" else "cuda")
        shapes = ((out, into), (rows, into), (rows, out), (rows, into))
        return tuple(torch.randn(shape, dtype=dtype, device=place) for shape in shapes)

    def rates(self) -> tuple[float, float]:
        """(operations a second of the blocks' products, of the head's)."""
        return self._rate(self._blocks), self._rate(self._head)

    def _rate(self, matrices: Sequence[tuple[torch.Tensor, ...]]) -> float:
        import torch

        def once() -> None:
            for weight, states, outputs, gradient in matrices:
                torch.mm(states, weight.T, out=outputs)
                torch.mm(outputs, weight, out=gradient)

        count = sum(4 * weight.numel() * len(states) for weight, states, *_ in matrices)
        times = max(1, math.ceil(AT_LEAST / timed(once, self._device)))

        def again() -> None:
            for _ in range(times):
                once()

        return times * count / timed(again, self._device)


def measure(
    model: ModelFiles, workload: str, batch: int, *, device: Device, rounds: int
) -> dict[str, Any]:
    """Steps and products in turn.

    Args:
        model: what is trained.
        workload: one of `benchmarks.lengths.WORKLOADS`.
        batch: rows of a step.
        device: where.
        rounds: steps that count; one more goes before them.
    """
    architecture, generator = model.architecture, np.random.default_rng(0)
    drawn = [
        made_rows(workload, batch, generator, vocabulary=architecture.vocabulary)
        for _ in range(rounds + 1)
    ]
    backend, checkpointing = opened(model, drawn[0], device)
    peak = backend.peak_memory_bytes()  # the bare products have not taken anything yet
    positions = min(drawn[0].tokens, backend.micro_batch_tokens)
    products = Products(architecture, positions, min(drawn[0].supervised, HEAD_ROWS), device)
    products.rates()
    rates, found = [products.rates()], []
    for rows in drawn[1:]:
        seconds = timed(partial(backend.step, rows, lr=RATE, tokens=rows.supervised), device)
        rates.append(products.rates())
        found.append(one_round(wanted_by(architecture, rows), rows.tokens, seconds, rates[-2:]))
    return {
        "workload": workload,
        "batch": batch,
        "rounds": rounds,
        "gradient_checkpointing": checkpointing,
        "gigaoperations_of_the_first_step": {
            name: round(count / 1e9, 1)
            for name, count in asdict(wanted_by(architecture, drawn[1])).items()
        },
        "positions": statistics.median(one["positions"] for one in found),
        **{
            name: median_and_range([one[name] for one in found], digits)
            for name, digits in (
                ("step_seconds", 4),
                ("tokens_per_second", 1),
                ("step_gflops", 1),
                ("block_products_gflops", 1),
                ("head_products_gflops", 1),
                ("products_gflops", 1),
                ("share", 3),
            )
        },
        "peak_memory_bytes": peak,
    }


def wanted_by(architecture: Architecture, rows: Rows) -> Operations:
    """What a step over these rows needs."""
    return operations(architecture, rows.lengths_R.tolist(), rows.supervised, rank=RANK)


def one_round(
    wanted: Operations, positions: int, seconds: float, rates: Sequence[tuple[float, float]]
) -> dict[str, float]:
    """The figures of a step.

    Args:
        wanted: by it.
        positions: of its rows.
        seconds: that it took.
        rates: (of the blocks' products, of the head's) before it and after it.
    """
    blocks, head = (statistics.mean(kind) for kind in zip(*rates, strict=True))
    rate = rate_for(wanted, blocks, head)
    return {
        "positions": positions,
        "step_seconds": seconds,
        "tokens_per_second": positions / seconds,
        "step_gflops": wanted.total / seconds / 1e9,
        "block_products_gflops": blocks / 1e9,
        "head_products_gflops": head / 1e9,
        "products_gflops": rate / 1e9,
        "share": wanted.total / seconds / rate,
    }


def median_and_range(values: Sequence[float], digits: int) -> dict[str, float]:
    """Median, smallest and largest.

    >>> median_and_range([3.0, 1.0, 2.04], 1)
    {'median': 2.0, 'least': 1.0, 'most': 3.0}
    """
    rounded = (statistics.median(values), min(values), max(values))
    return dict(zip(("median", "least", "most"), (round(v, digits) for v in rounded), strict=True))


def open_engine(model: ModelFiles, device: Device, settings: Mapping[str, Any]) -> Backend:
    """Open PyTorch's engine for a benchmark of its step.

    Args:
        model: with its weights.
        device: to compute on.
        settings: of its `Setup`, beside those of every such benchmark.
    """
    from qwen_local.backends.open import open_backend
    from qwen_local.backends.select import Choice

    setup = Setup(
        model=model,
        lora=LoraSpec(rank=RANK, alpha=2 * RANK, dropout=0.0),
        device=device,
        dtype=DTYPES[device],
        max_grad_norm=1.0,
        micro_batch_tokens=MICRO_BATCH_TOKENS[device],
        **settings,
    )
    return open_backend(Choice("cuda", device, "a benchmark"), setup)


def opened(model: ModelFiles, rows: Rows, device: Device) -> tuple[Backend, bool]:
    """(an engine that has taken its first step, whether memory asked for checkpointing).

    Raises:
        RowTooLargeError: even that did not suffice.
    """
    for checkpointing in (False, True):
        backend = open_engine(model, device, {"gradient_checkpointing": checkpointing})
        try:
            backend.step(rows, lr=RATE, tokens=rows.supervised)
            return backend, checkpointing
        except RowTooLargeError:
            if checkpointing:
                raise
        del backend  # which the traceback has held until here
        release(device)
    raise AssertionError("the loop returns or raises")


def measure_all(
    device: Device, models: Sequence[str], rounds: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Every case of these models, as it is found; why, where memory does not suffice for one.

    Args:
        device: where.
        models: names that `make_model` knows.
        rounds: see `measure`.
        folder: where models are made.
    """
    import torch

    for name in models:
        model = fetch(find_model(str(make_model(name, DTYPES[device], folder))))
        for workload, batch in CASES[device]:
            release(device)
            try:
                found = measure(model, workload, batch, device=device, rounds=rounds)
            except (RowTooLargeError, torch.OutOfMemoryError):
                found = {**skipped(f"{name}: memory does not suffice for {workload} x {batch}")}
            yield {"model": name, **found}


def main() -> None:
    """Print or write one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--only", choices=sorted({*MODELS["cpu"], *MODELS["gpu"]}))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", help="a file, or - for stdout")
    given = parser.parse_args()
    import torch

    models = (given.only,) if given.only else MODELS[given.device]
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for case in measure_all(given.device, models, given.rounds, Path(folder)):
            cases.append(case)
            if "skipped_because" in case:
                print(case["skipped_because"], file=sys.stderr)
                continue
            share = case["share"]
            said = f"{case['model']}, {case['workload']} x {case['batch']}: {share['median']:.1%}"
            print(f"{said} ({share['least']:.1%} to {share['most']:.1%})", file=sys.stderr)
    result = {
        "command": " ".join(["python", "-m", "benchmarks.roofline", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": {**machine(given.device), "threads": torch.get_num_threads()},
        "dtype": DTYPES[given.device],
        "lora_rank": RANK,
        "cases": cases,
    }
    write(result, given.output or RESULTS / f"roofline-{given.device}.json")


if __name__ == "__main__":
    main()
