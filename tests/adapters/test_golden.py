"""What PEFT and mlx-lm wrote themselves loads here and answers as it does there.

The adapters and the expected logits come from `tests/golden/make_adapters.py`.
"""

from __future__ import annotations

from pathlib import Path

import mlx_lm
import numpy as np
import pytest
from safetensors.numpy import load_file

from qwen_local.adapters.store import load_adapter, save_adapter
from qwen_local.backends.base import Setup
from qwen_local.backends.machine import Engine
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from qwen_local.embedded import tiny_model_path
from qwen_local.models.source import fetch, find_model
from qwen_local.rows.rows import Rows
from qwen_local.rows.targets import IGNORE, Targets

pytestmark = pytest.mark.slow

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"
IDS = [5, 17, 200, 3, 44, 91, 120, 7]
TARGETS = [0, 11, 500, 1023, 2047]


@pytest.mark.parametrize("writer", ["peft", "mlx"])
def test_an_adapter_of_another_tool_gives_the_probabilities_that_it_gives_there(
    writer: str, engine: Engine
) -> None:
    model = fetch(find_model("qwen-local/tiny"))
    adapter = load_adapter(ADAPTERS / writer, model.architecture)
    setup = Setup(model=model, lora=adapter.lora, device="cpu", dtype="float32")
    backend = open_backend(Choice(engine, "cpu", "a test"), setup)
    untouched = [*[IGNORE] * (len(IDS) - 1)]
    rows = Rows.from_pairs((IDS, Targets.of([*untouched, target])) for target in TARGETS)
    bare = backend.score(rows).nll_R
    backend.load_adapter(adapter.arrays)
    logits = load_file(ADAPTERS / writer / "expected.safetensors")["logits"].astype(np.float64)
    log_sum = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
    np.testing.assert_allclose(backend.score(rows).nll_R, log_sum - logits[TARGETS], atol=1e-4)
    assert np.abs(bare - backend.score(rows).nll_R).max() > 0.1  # the adapter acts


@pytest.mark.parametrize("writer", ["peft", "mlx"])
def test_mlx_lm_loads_the_tiny_model_with_what_we_write_through_its_front_door(
    writer: str, tmp_path: Path
) -> None:
    import mlx.core as mx

    architecture = fetch(find_model("qwen-local/tiny")).architecture
    save_adapter(load_adapter(ADAPTERS / writer, architecture), tmp_path / "adapter")
    model, _ = mlx_lm.load(str(tiny_model_path()), adapter_path=str(tmp_path / "adapter/mlx"))
    model.set_dtype(mx.float32)
    logits = np.array(model(mx.array([IDS]))[0, -1])
    expected = load_file(ADAPTERS / writer / "expected.safetensors")["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)
