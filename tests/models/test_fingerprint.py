"""Two models of one shape are told apart, and one model is the same wherever it lies."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from qwen_local.embedded import tiny_model_path
from qwen_local.models.fingerprint import fingerprint


def test_a_copy_has_the_same_fingerprint(tmp_path: Path) -> None:
    shutil.copytree(tiny_model_path(), tmp_path / "elsewhere")
    assert fingerprint(tmp_path / "elsewhere") == fingerprint(tiny_model_path())


def test_a_model_trained_further_has_another(tmp_path: Path) -> None:
    name, weights = "model.layers.1.mlp.down_proj.weight", tiny_model_path() / "model.safetensors"
    tensors = load_file(weights)
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(tmp_path) != fingerprint(tiny_model_path())


def test_files_that_no_engine_reads_play_no_part(tmp_path: Path) -> None:
    shutil.copytree(tiny_model_path(), tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("another")
    assert fingerprint(tmp_path / "model") == fingerprint(tiny_model_path())
