"""A model that does not fit is one message, on either engine."""

from __future__ import annotations

from typing import Any

import mlx_lm.utils
import pytest
import torch
import transformers

from qwen_local.backends.machine import Engine
from qwen_local.errors import OutOfMemoryError
from tests.conftest import Cli

pytestmark = pytest.mark.slow

FAILURES = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "mlx": RuntimeError("[metal::malloc] Attempting to allocate 17179869184 bytes"),
}


@pytest.fixture
def too_large(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise FAILURES[engine]

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    monkeypatch.setattr(mlx_lm.utils, "load_model", fail)


@pytest.mark.usefixtures("too_large")
@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("train",), "set --quantization 4bit, or stop other programs"),
        (("train", "--quantization", "4bit"), "stop other programs"),
        (("generate", "--model", "qwen-local/tiny", "--prompt", "Hi"), "set --quantization 4bit"),
    ],
)
def test_a_model_that_does_not_fit_is_one_message(
    engine: Engine, command: tuple[str, ...], hint: str, cli: Cli
) -> None:
    said = cli(*command, "--backend", engine, "--device", "cpu")
    assert (said.code, said.out) == (OutOfMemoryError.exit_code, "")
    assert "out of memory: qwen-local/tiny" in said.err
    assert f"does not fit into memory\n\nhint: {hint}" in said.err
    assert "Traceback" not in said.err
