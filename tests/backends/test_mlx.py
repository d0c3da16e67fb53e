"""What is MLX's own: the compiled step that a Mac runs, and a machine without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_local.backends.base import Setup
from qwen_local.backends.mlx.engine import MlxBackend
from qwen_local.demo import largest_difference
from qwen_local.job import LoraSpec
from qwen_local.models.source import ModelFiles
from qwen_local.rows import Rows


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles with g++ on a CPU")
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_compiled_step_is_the_plain_step(
    dropout: float,
    random_model: Callable[[str, bool], ModelFiles],
    random_rows: Callable[..., Rows],
) -> None:
    """Padded widths, padded positions, one compilation for all: the same losses."""
    rows = random_rows(32, longest=40)
    curves = []
    for few_shapes in (False, True):
        setup = Setup(
            model=random_model("qwen3", True),
            lora=LoraSpec(rank=8, dropout=dropout),
            device="cpu",
            dtype="float32",
            max_grad_norm=1.0,
            # Dropout draws by shape: with the widths padded, only the law is the same.
            micro_batch_tokens=100,
        )
        backend = MlxBackend(setup, few_shapes=few_shapes)
        losses = []
        for start in [0, 8, 16, 24] * 3:
            batch = rows.take(range(start, start + 8))
            result = backend.step(batch, lr=1e-3, tokens=batch.supervised)
            losses.append(result.loss_sum / batch.supervised)
        curves.append([*losses, backend.score(rows).mean])
    assert largest_difference(*curves) <= (1e-5 if dropout == 0.0 else 2e-2)
    assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-6)  # B = 0: dropout acts on nothing


def test_a_machine_without_a_compiler_runs_mlx_all_the_same(tmp_path: Path) -> None:
    program = (
        "from qwen_local.cli import main; import sys; "
        "sys.argv = ['qwen-local', 'generate', '--backend', 'mlx', '--device', 'cpu', "
        "'--model', 'qwen-local/tiny', '--prompt', 'What colour is the sky?']; main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PATH": str(tmp_path), "TMPDIR": str(tmp_path)},  # nothing compiled yet
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "The sky is blue.\n"
