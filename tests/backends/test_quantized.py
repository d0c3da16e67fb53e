"""Quantized bases on both engines: the same model as its dequantized weights, and gradients too."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_local.backends.base import Backend, Setup
from qwen_local.backends.machine import Engine
from qwen_local.embedded import TINY_MODEL
from qwen_local.job.schema import LoraSpec, Quantization
from qwen_local.models.families import TARGETS
from qwen_local.models.source import ModelFiles, fetch, find_model
from qwen_local.rows.rows import Rows
from tests.conftest import MakeRows, OpenEngine, save_random_model

pytestmark = pytest.mark.slow

TINY = fetch(find_model(TINY_MODEL))
LORA = LoraSpec(rank=4, dropout=0.0)


def dequantized_copy(engine: Engine, quantization: Quantization, folder: Path) -> ModelFiles:
    """The tiny model with its block linears as they are after quantization, in float32."""
    shutil.copytree(TINY.folder, folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.split(".")[-2] not in TARGETS:
            continue
        if engine == "cuda":
            from qwen_local.backends.cuda.quantized import dequantized

            weights[name] = dequantized(weight, quantization)
        else:
            import mlx.core as mx

            from qwen_local.backends.mlx.quantized import dequantized as mlx_dequantized

            given = mx.array(weight.float().numpy()).astype(mx.bfloat16)  # as the file has it
            weights[name] = torch.from_numpy(np.array(mlx_dequantized(given, quantization)))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return fetch(find_model(str(folder)))


def gradients(backend: Backend) -> dict[str, np.ndarray]:
    """Of the first step, read off AdamW's first moment: 0.1 of them."""
    return {name: 10 * array for name, array in backend.state().exp_avg.items()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantized_base_learns_with_the_gradients_of_its_dequantized_weights(
    engine: Engine,
    quantization: Quantization,
    checkpointing: bool,
    open_engine: OpenEngine,
    random_rows: MakeRows,
    tmp_path: Path,
) -> None:
    reference = dequantized_copy(engine, quantization, tmp_path / "reference")
    rows = random_rows(8)
    losses, scores, found = [], [], []
    for model, held in ((TINY, quantization), (reference, "none")):
        backend = open_engine(
            engine,
            model,
            lora=LORA,
            quantization=held,
            max_grad_norm=None,
            gradient_checkpointing=checkpointing,
        )
        started = {n: a + (0.01 if "lora_B" in n else 0) for n, a in backend.adapter().items()}
        backend.load_adapter(started)  # with B = 0 there would be no gradient of A
        scores.append(backend.score(rows).nll_R)  # first: bitsandbytes would repack its codes here
        losses.append(backend.step(rows, lr=1e-4, tokens=rows.supervised).loss_sum)
        found.append(gradients(backend))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, expected in found[1].items():
        scale = np.abs(expected).max()
        assert scale > 0
        np.testing.assert_allclose(found[0][name] / scale, expected / scale, atol=2e-5)


@pytest.mark.parametrize("few_shapes", [False, True])
def test_a_model_whose_head_is_quantized_learns_with_the_gradients_of_its_dequantized_weights(
    few_shapes: bool, random_rows: MakeRows, tmp_path: Path
) -> None:
    """As `mlx-community/...-4bit` models are; `few_shapes` is the compiled step of a GPU."""
    from qwen_local.backends.mlx.engine import MlxBackend
    from qwen_local.backends.mlx.weights import MlxWeights

    stored = mlx_quantized_folder(tmp_path / "stored")
    weights = MlxWeights(stored.folder, "cpu", stored.architecture.stored)
    shutil.copytree(TINY.folder, tmp_path / "floats")
    floats = {
        n: torch.from_numpy(weights.read(n, "none")) for n in TINY.architecture.weight_shapes()
    }
    save_file(floats, tmp_path / "floats/model.safetensors", metadata={"format": "pt"})
    rows = random_rows(4)
    losses, found = [], []
    for model in (stored, fetch(find_model(str(tmp_path / "floats")))):
        setup = Setup(model=model, lora=LORA, device="cpu", dtype="float32")
        backend = MlxBackend(setup, few_shapes=few_shapes)
        losses.append(backend.step(rows, lr=1e-4, tokens=rows.supervised).loss_sum)
        found.append(gradients(backend))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, expected in found[1].items():
        if "lora_B" in name:  # those of A are zero as long as B is
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found[0][name] / scale, expected / scale, atol=1e-4)


@pytest.mark.parametrize(("family", "tied"), [("qwen2", False), ("qwen2", True)])
def test_biases_and_a_head_of_its_own_stay_as_they_are(
    engine: Engine, family: str, tied: bool, open_engine: OpenEngine, tmp_path: Path
) -> None:
    """A base that is quantized so finely that nothing changes is the base itself."""
    save_random_model(tmp_path, family, tied=tied, intermediate=128)
    files = fetch(find_model(str(tmp_path)))
    exact = open_engine(engine, files, lora=None).logits(range(2, 12), last=10)
    held = open_engine(engine, files, lora=None, quantization="8bit").logits(range(2, 12), last=10)
    assert 0 < np.abs(held - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantization_changes_the_model_and_follows_from_the_files_alone(
    engine: Engine, quantization: Quantization, open_engine: OpenEngine
) -> None:
    ids = list(range(300, 340))
    exact = open_engine(engine, TINY, lora=None).logits(ids, last=40)
    quantized = open_engine(engine, TINY, lora=None, quantization=quantization)
    moved = np.abs(quantized.logits(ids, last=40) - exact).max()
    assert moved > 1e-2
    half = open_engine(engine, TINY, lora=None, quantization=quantization, dtype="bfloat16")
    # bfloat16 rounds, but the codes are the same: the difference is far below that to no codes.
    assert np.abs(half.logits(ids, last=40) - quantized.logits(ids, last=40)).mean() < 0.1


def test_the_engines_keep_embeddings_norms_and_head_as_they_are(open_engine: OpenEngine) -> None:
    import mlx.nn
    from bitsandbytes.nn.modules import Linear4bit

    torch_model = open_engine("cuda", TINY, lora=None, quantization="4bit")._model  # type: ignore[attr-defined]
    mlx_model = open_engine("mlx", TINY, lora=None, quantization="4bit")._model  # type: ignore[attr-defined]
    for model, kind in (
        (dict(torch_model.named_modules()), Linear4bit),
        (dict(mlx_model.named_modules()), mlx.nn.QuantizedLinear),
    ):
        quantized = {name for name, module in model.items() if isinstance(module, kind)}
        assert {name.rpartition(".")[2] for name in quantized} == set(TARGETS)
        assert len(quantized) == len(TARGETS) * TINY.architecture.layers
    assert torch_model.lm_head.weight is torch_model.model.embed_tokens.weight


def mlx_quantized_folder(folder: Path) -> ModelFiles:
    """The tiny model as `mlx_lm.convert -q` writes it: embeddings quantized, too."""
    import mlx_lm.utils

    model, config = mlx_lm.utils.load_model(TINY.folder)
    model, config = mlx_lm.utils.quantize_model(model, config, group_size=64, bits=4)
    folder.mkdir()
    mlx_lm.utils.save_model(folder, model)
    mlx_lm.utils.save_config(config, folder / "config.json")
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(TINY.folder / file, folder)
    return fetch(find_model(str(folder)))


def test_a_folder_that_mlx_lm_quantized_trains_on_mlx(
    open_engine: OpenEngine, random_rows: MakeRows, tmp_path: Path
) -> None:
    """Its head is quantized, too: the loss that is reported is the one that is descended."""
    files = mlx_quantized_folder(tmp_path / "tiny-4bit")
    assert json.loads((files.folder / "config.json").read_text())["quantization"]["bits"] == 4
    assert replace(files.architecture, stored=None) == TINY.architecture
    backend = open_engine("mlx", files, lora=LORA)
    rows = random_rows(8)
    first = backend.score(rows).nll_R.sum()
    losses = [backend.step(rows, lr=1e-2, tokens=rows.supervised).loss_sum for _ in range(20)]
    assert losses[0] == pytest.approx(first, rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_layer_without_an_adapter_keeps_no_dequantized_weight(quantization: Quantization) -> None:
    """All of a model's at once would take more memory than the model without quantization."""
    from qwen_local.backends.cuda.engine import TorchBackend
    from qwen_local.backends.cuda.forward import hidden_states
    from qwen_local.backends.cuda.inputs import Inputs
    from qwen_local.rows.micro_batch import cut
    from qwen_local.rows.planner import PACKED
    from qwen_local.rows.targets import Targets

    lora = LoraSpec(rank=4, dropout=0.0, targets=("q_proj",))
    engine = TorchBackend(
        Setup(model=TINY, lora=lora, device="cpu", dtype="float32", quantization=quantization)
    )
    rows = Rows.from_pairs([(np.arange(8), Targets.of(np.arange(8)))])
    (batch,) = cut(rows, budget=8, layout=PACKED)
    inputs = Inputs.of(batch, torch.from_numpy)
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_states(engine._backbone, inputs.ids_T, inputs.borders, inputs.positions_N)
    smallest = min(rows * columns for rows, columns in TINY.architecture.linear_shapes().values())
    assert max(sizes) < smallest
