"""Products of MLX on a Linux CPU do not depend on memory addresses, and a resumed run is exact.

With an empty `MKL_CBWR` in the environment (MKL's default) the test of alignment fails; with an
adapter that is loaded in another layout than the optimizer leaves, the test of a resumed run fails.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from qwen_local.backends.base import Backend
from qwen_local.backends.mlx.blas import REPRODUCIBLE
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import ModelFiles, fetch, find_model
from qwen_local.rows.rows import Rows

VOCABULARY = 9000
HIDDEN = 192
OFFSETS = range(0, 64, 4)
"""Bytes."""
SHAPES = [
    (100, HIDDEN, 8),  # x A of LoRA
    (100, 8, HIDDEN),
    (8, 100, HIDDEN),  # the gradient of A
    (1, HIDDEN, HIDDEN),
    (7, 33, 64),
    (100, HIDDEN, 3 * HIDDEN),
    (33, HIDDEN, VOCABULARY),
    (33, VOCABULARY, HIDDEN),
]
"""(M, K, N); with MKL's default the first and the fourth fail on an AMD Zen 3."""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="PyTorch lends MLX Intel's MKL on Linux and x86-64",
)


def at(array: np.ndarray, offset: int) -> mx.array:
    """An array whose address is `offset` bytes higher than that of a fresh allocation."""
    skipped = offset // 4
    flat = mx.array(np.concatenate([np.zeros(skipped, np.float32), array.ravel()]))
    return flat[skipped:].reshape(array.shape)


@pytest.mark.slow
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_a_product_does_not_depend_on_alignment(m: int, k: int, n: int, transposed: bool) -> None:
    generator = np.random.default_rng(0)
    left_MK = generator.standard_normal((m, k)).astype(np.float32)
    right = generator.standard_normal((n, k) if transposed else (k, n)).astype(np.float32)

    def product(left_offset: int, right_offset: int) -> np.ndarray:
        b = at(right, right_offset)
        with mx.stream(mx.cpu):
            return np.array(at(left_MK, left_offset) @ (b.T if transposed else b))

    expected = product(0, 0)
    differing = [
        (left_offset, right_offset)
        for offset in OFFSETS
        for left_offset, right_offset in ((offset, 0), (0, offset), (offset, 60 - offset))
        if not np.array_equal(product(left_offset, right_offset), expected)
    ]
    assert differing == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """A random-weight Qwen3 of a shape whose products depended on alignment."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("aligned")
    torch.manual_seed(7)
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        tie_word_embeddings=False,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return fetch(find_model(str(folder)))


def test_a_resumed_run_is_exact_whatever_was_allocated_before(
    model: ModelFiles, random_rows: Callable[..., Rows], open_engine: Callable[..., Backend]
) -> None:
    rows = random_rows(16, longest=40)
    lora = LoraSpec(rank=8, dropout=0.1)

    def train(backend: Backend, steps: range) -> Iterator[tuple[float, float]]:
        for step in steps:
            batch = rows.take([2 * step % 16, (2 * step + 1) % 16])
            result = backend.step(batch, lr=1e-3, tokens=batch.supervised)
            yield result.loss_sum, result.grad_norm

    unbroken = open_engine("mlx", model, lora=lora)
    list(train(unbroken, range(4)))
    state = unbroken.state()
    expected = list(train(unbroken, range(4, 8)))
    adapter = unbroken.adapter()
    sizes = np.random.default_rng(1)
    history: list[mx.array] = []
    for _ in range(3):
        mx.clear_cache()  # buffers that the runs before have used
        arrays = [mx.zeros((size,)) for size in sizes.integers(1, 4000, 400).tolist()]
        mx.eval(arrays)
        history += arrays[::2]
        del arrays
        resumed = open_engine("mlx", model, lora=lora)
        resumed.load_state(state)
        assert list(train(resumed, range(4, 8))) == expected
        for name, array in resumed.adapter().items():
            np.testing.assert_array_equal(array, adapter[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "found"), [(None, REPRODUCIBLE), ("COMPATIBLE", "COMPATIBLE"), ("", "")]
)
def test_the_users_own_setting_stays(given: str | None, found: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    asked = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, qwen_local.backends.mlx.before_import; print(os.environ['MKL_CBWR'])",
        ],
        env=environment if given is None else environment | {"MKL_CBWR": given},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout == found + "\n"
