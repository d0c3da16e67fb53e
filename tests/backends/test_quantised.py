"""Quantised bases on both engines: the same model as its dequantised weights, and gradients too."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from qwen_local.backends.base import Backend
from qwen_local.backends.select import Engine
from qwen_local.embedded import TINY_MODEL
from qwen_local.job import LoraSpec, Quantization
from qwen_local.models.architecture import LINEARS
from qwen_local.models.source import ModelFiles, fetch, find_model
from tests.conftest import MakeRows, OpenEngine

TINY = fetch(find_model(TINY_MODEL))
LORA = LoraSpec(rank=4, dropout=0.0)


def dequantised_copy(engine: Engine, quantization: Quantization, folder: Path) -> ModelFiles:
    """The tiny model with its block linears as they are after quantisation, in float32."""
    shutil.copytree(TINY.folder, folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.split(".")[-2] not in LINEARS:
            continue
        if engine == "cuda":
            from qwen_local.backends.cuda.quantised import dequantised

            weights[name] = dequantised(weight, quantization)
        else:
            import mlx.core as mx
            import torch

            from qwen_local.backends.mlx.quantised import dequantised as mlx_dequantised

            given = mx.array(weight.float().numpy()).astype(mx.bfloat16)  # as the file has it
            weights[name] = torch.from_numpy(np.array(mlx_dequantised(given, quantization)))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return fetch(find_model(str(folder)))


def gradients(backend: Backend) -> dict[str, np.ndarray]:
    """Of the first step, read off AdamW's first moment: 0.1 of them."""
    return {name: 10 * array for name, array in backend.state().exp_avg.items()}


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_base_learns_with_the_gradients_of_its_dequantised_weights(
    engine: Engine,
    quantization: Quantization,
    open_engine: OpenEngine,
    random_rows: MakeRows,
    tmp_path: Path,
) -> None:
    reference = dequantised_copy(engine, quantization, tmp_path / "reference")
    rows = random_rows(8)
    # LLM.int8() rounds activations to 8 bits, too.
    near = 5e-2 if (engine, quantization) == ("cuda", "8bit") else 2e-5
    found, results = [], []
    for model, held in ((TINY, quantization), (reference, "none")):
        backend = open_engine(engine, model, lora=LORA, quantization=held, max_grad_norm=None)
        started = {n: a + (0.01 if "lora_B" in n else 0) for n, a in backend.adapter().items()}
        backend.load_adapter(started)  # with B = 0 there would be no gradient of A
        backend.score(rows)  # outside training first: bitsandbytes would repack there
        results.append(backend.step(rows, lr=1e-4, tokens=rows.supervised))
        found.append(gradients(backend))
    assert results[0].loss_sum == pytest.approx(results[1].loss_sum, rel=near)
    for name, expected in found[1].items():
        scale = np.abs(expected).max()
        assert scale > 0
        np.testing.assert_allclose(found[0][name] / scale, expected / scale, atol=near)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantisation_changes_the_model_and_follows_from_the_files_alone(
    engine: Engine, quantization: Quantization, open_engine: OpenEngine
) -> None:
    ids = list(range(300, 340))
    exact = open_engine(engine, TINY, lora=None).logits(ids, last=40)
    quantised = open_engine(engine, TINY, lora=None, quantization=quantization)
    moved = np.abs(quantised.logits(ids, last=40) - exact).max()
    assert moved > 1e-2
    half = open_engine(engine, TINY, lora=None, quantization=quantization, dtype="bfloat16")
    # bfloat16 rounds, but the codes are the same: the difference is far below that to no codes.
    assert np.abs(half.logits(ids, last=40) - quantised.logits(ids, last=40)).mean() < 0.1


def test_the_engines_keep_embeddings_norms_and_head_as_they_are(open_engine: OpenEngine) -> None:
    import mlx.nn
    from bitsandbytes.nn.modules import Linear4bit

    torch_model = open_engine("cuda", TINY, lora=None, quantization="4bit")._model  # type: ignore[attr-defined]
    mlx_model = open_engine("mlx", TINY, lora=None, quantization="4bit")._model  # type: ignore[attr-defined]
    for model, kind in (
        (dict(torch_model.named_modules()), Linear4bit),
        (dict(mlx_model.named_modules()), mlx.nn.QuantizedLinear),
    ):
        quantised = {name for name, module in model.items() if isinstance(module, kind)}
        assert {name.rpartition(".")[2] for name in quantised} == set(LINEARS)
        assert len(quantised) == len(LINEARS) * TINY.architecture.layers
    assert torch_model.lm_head.weight is torch_model.model.embed_tokens.weight


def mlx_quantised_folder(folder: Path) -> ModelFiles:
    """The tiny model as `mlx_lm.convert -q` writes it: embeddings quantised, too."""
    import mlx_lm.utils

    model, config = mlx_lm.utils.load_model(TINY.folder)
    model, config = mlx_lm.utils.quantize_model(model, config, group_size=64, bits=4)
    folder.mkdir()
    mlx_lm.utils.save_model(folder, model)
    mlx_lm.utils.save_config(config, folder / "config.json")
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(TINY.folder / file, folder)
    return fetch(find_model(str(folder)))


def test_a_folder_that_mlx_lm_quantised_trains_on_mlx(
    open_engine: OpenEngine, random_rows: MakeRows, tmp_path: Path
) -> None:
    """Its head is quantised, too: the loss that is reported is the one that is descended."""
    files = mlx_quantised_folder(tmp_path / "tiny-4bit")
    assert json.loads((files.folder / "config.json").read_text())["quantization"]["bits"] == 4
    assert replace(files.architecture, stored=None) == TINY.architecture
    backend = open_engine("mlx", files, lora=LORA)
    rows = random_rows(8)
    first = backend.score(rows).nll_R.sum()
    losses = [backend.step(rows, lr=1e-2, tokens=rows.supervised).loss_sum for _ in range(20)]
    assert losses[0] == pytest.approx(first, rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]
