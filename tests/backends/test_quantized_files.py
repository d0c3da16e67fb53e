"""Folders that were quantized elsewhere: what is in codes follows from the files alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from qwen_local.embedded import TINY_MODEL
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import fetch, find_model
from qwen_local.models.tensor_check import float_layers
from tests.conftest import MakeRows, OpenEngine
from tests.models.quantized_folders import (
    SCHEMES,
    by_bitsandbytes,
    by_mlx,
    change_config,
    checked,
    with_tokenizer,
)

TINY = fetch(find_model(TINY_MODEL))
LORA = LoraSpec(rank=4, dropout=0.0)
IDS = list(range(300, 340))
SKIPPED = {"llm_int8_skip_modules": ["lm_head", "down_proj", "model.layers.1.self_attn"]}


def dequantized_copy(source: Path, folder: Path) -> Path:
    """The same model with its codes replaced by the floats that they stand for."""
    import torch

    from qwen_local.backends.cuda.weights import TorchWeights

    model, reader = checked(source), TorchWeights(source, "cpu")
    names = model.architecture.weight_shapes()
    floats = {name: torch.from_numpy(reader.read(name, "none").copy()) for name in names}
    folder.mkdir()
    save_file(floats, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    change_config(folder, quantization_config=None)
    return with_tokenizer(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("scheme", "saved", "said"),
    [
        ("nested", {}, {}),
        ("nf4", {}, {}),
        ("nf4", SKIPPED, {}),
        ("nf4", SKIPPED, {"llm_int8_skip_modules": None}),
        ("nf4", {}, {"llm_int8_skip_modules": ["q_proj"]}),
        ("nf4", {}, {"llm_int8_skip_modules": ["lm_head", "((("]}),
        ("int8", {}, {}),
        ("int8", SKIPPED, {"llm_int8_skip_modules": ["q_proj"]}),
    ],
)
def test_codes_of_bitsandbytes_are_the_model_that_they_stand_for(
    scheme: str,
    saved: dict[str, Any],
    said: dict[str, Any],
    tied: bool,
    open_engine: OpenEngine,
    random_rows: MakeRows,
    tmp_path: Path,
) -> None:
    """Whatever `llm_int8_skip_modules` says: not all that write such folders set it rightly."""
    folder = by_bitsandbytes(tmp_path / "m", scheme, tied=tied, **saved)
    settings = checked(folder).config["quantization_config"]
    change_config(folder, quantization_config={**settings, **said})
    reference = checked(dequantized_copy(folder, tmp_path / "reference"))
    rows = random_rows(4)
    found, expected = (
        open_engine("cuda", model, lora=LORA) for model in (checked(folder), reference)
    )
    assert found.score(rows).nll_R == pytest.approx(expected.score(rows).nll_R, rel=1e-5)
    first, second = (
        engine.step(rows, lr=1e-3, tokens=rows.supervised) for engine in (found, expected)
    )
    assert first.loss_sum == pytest.approx(second.loss_sum, rel=1e-5)
    assert first.grad_norm == pytest.approx(second.grad_norm, rel=4e-5)


def test_a_head_in_codes_of_bitsandbytes_is_no_matter_where_it_is_tied(
    open_engine: OpenEngine, tmp_path: Path
) -> None:
    """transformers quantizes it where it is not told to skip it, and then saves the embedding."""
    folder = by_bitsandbytes(tmp_path / "m", "nf4", llm_int8_skip_modules=["q_proj"])
    floats = [f"model.layers.{n}.self_attn.q_proj" for n in range(TINY.architecture.layers)]
    assert float_layers(folder, TINY.architecture) == floats
    reference = checked(dequantized_copy(folder, tmp_path / "reference"))
    found, expected = (
        open_engine("cuda", model, lora=None).logits(IDS, last=40)
        for model in (checked(folder), reference)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_layers_that_mlx_left_as_floats_are_read_so(
    open_engine: OpenEngine, tmp_path: Path
) -> None:
    folder = by_mlx(tmp_path / "m", quant_predicate=lambda path, _: "down_proj" not in path)
    floats = [f"model.layers.{n}.mlp.down_proj" for n in range(TINY.architecture.layers)]
    assert float_layers(folder, TINY.architecture) == floats
    moved = open_engine("mlx", checked(folder), lora=None).logits(IDS, last=40)
    assert np.abs(moved - open_engine("mlx", TINY, lora=None).logits(IDS, last=40)).max() > 1e-2


@pytest.mark.parametrize("scheme", [None, *SCHEMES])
def test_a_head_beside_a_tied_model_is_passed_over_in_silence(
    scheme: str | None,
    open_engine: OpenEngine,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """transformers would say that it is not tied; the engine ties it."""
    folder = tmp_path / "m"
    if scheme is None:
        folder.mkdir()
        for file in TINY.folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    else:
        by_bitsandbytes(folder, scheme)
    alone = open_engine("cuda", checked(folder), lora=None).logits(IDS, last=40)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    talk = logging.getLogger("transformers")
    level = talk.level
    capfd.readouterr()
    caplog.clear()
    beside = open_engine("cuda", checked(folder), lora=None).logits(IDS, last=40)
    np.testing.assert_array_equal(beside, alone)
    assert (caplog.messages, capfd.readouterr()) == ([], ("", ""))
    assert talk.level == level
