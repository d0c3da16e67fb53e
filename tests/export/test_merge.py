"""Merged weights against the live adapter, on random models of every kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_local.adapters.lora import Adapter, lora_shapes
from qwen_local.adapters.store import save_adapter
from qwen_local.backends.machine import DType, Engine
from qwen_local.backends.open import open_weights
from qwen_local.backends.select import Choice
from qwen_local.export.merge import merged_tensors, write_shards
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import ModelFiles, fetch, find_model
from tests.conftest import MakeModel, OpenEngine

IDS = list(range(2, 42))
LORA = LoraSpec(rank=4, alpha=12, dropout=0.0, layers=2)
EVERY_MODEL = pytest.mark.parametrize(
    ("family", "tied"), [("qwen2", True), ("qwen2", False), ("qwen3", True), ("qwen3", False)]
)


def random_adapter(model: ModelFiles, lora: LoraSpec = LORA) -> Adapter:
    """Large enough to move every logit."""
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in lora_shapes(model.architecture, lora).items()
    }
    return Adapter(str(model.folder), lora, model.architecture.blocks, arrays)


def fused(
    model: ModelFiles,
    adapter: Adapter,
    engine: Engine,
    folder: Path,
    dtype: DType = "float32",
    **options: Any,
) -> ModelFiles:
    """The merged model, written and read again."""
    weights = open_weights(Choice(engine, "cpu", "a test"), model)
    folder.mkdir()
    shutil.copy(model.folder / "config.json", folder)
    tensors = merged_tensors(model.architecture, adapter, weights, "none")
    write_shards(folder, tensors, weights, dtype=dtype, **options)
    return fetch(find_model(str(folder)))


@EVERY_MODEL
def test_the_merged_model_says_what_the_live_adapter_says(
    engine: Engine,
    family: str,
    tied: bool,
    random_model: MakeModel,
    open_engine: OpenEngine,
    tmp_path: Path,
) -> None:
    model = random_model(family, tied)
    adapter = random_adapter(model)
    live = open_engine(engine, model, lora=adapter.lora)
    live.load_adapter(adapter.arrays)
    expected = live.logits(IDS, last=len(IDS))
    bare = open_engine(engine, model, lora=None).logits(IDS, last=len(IDS))
    export = fused(model, adapter, engine, tmp_path / "fused")
    found = open_engine(engine, export, lora=None).logits(IDS, last=len(IDS))
    assert np.abs(expected - bare).max() > 0.1
    assert np.abs(found - expected).max() <= 1e-5


@EVERY_MODEL
def test_in_bfloat16_it_errs_no_more_than_rounding_the_float32_merge(
    engine: Engine, family: str, tied: bool, random_model: MakeModel, tmp_path: Path
) -> None:
    """The merge of PEFT itself, in float32, then rounded; all three run in float32."""
    import peft
    import transformers

    model = random_model(family, tied)
    adapter = random_adapter(model)
    save_adapter(adapter, tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(model.folder)
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "adapter/peft").merge_and_unload()
    export = fused(model, adapter, engine, tmp_path / "fused", dtype="bfloat16")
    assert load_file(export.folder / "model.safetensors")["model.norm.weight"].dtype == (
        torch.bfloat16
    )
    ours = transformers.AutoModelForCausalLM.from_pretrained(export.folder).float()
    with torch.no_grad():
        ids = torch.tensor([IDS])
        truth = merged(ids).logits
        found = ours(ids).logits
        rounded = merged.to(torch.bfloat16).float()(ids).logits
    error = (rounded - truth).abs().max()
    assert error > 0
    assert (found - truth).abs().max() <= 1.5 * error


def test_a_tied_head_stays_tied_though_a_file_holds_one(
    engine: Engine, random_model: MakeModel, tmp_path: Path
) -> None:
    model = random_model("qwen3", True)
    shutil.copytree(model.folder, tmp_path / "with-head")
    file = tmp_path / "with-head/model.safetensors"
    weights = load_file(file)
    save_file(
        weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()},
        file,
        metadata={"format": "pt"},
    )
    given = fetch(find_model(str(tmp_path / "with-head")))
    export = fused(given, random_adapter(model), engine, tmp_path / "fused")
    assert "lm_head.weight" not in load_file(export.folder / "model.safetensors")


def test_a_large_model_is_written_in_shards_with_an_index(
    engine: Engine, random_model: MakeModel, open_engine: OpenEngine, tmp_path: Path
) -> None:
    model = random_model("qwen2", False)
    adapter = random_adapter(model)
    whole = fused(model, adapter, engine, tmp_path / "whole")
    parts = fused(model, adapter, engine, tmp_path / "parts", shard_bytes=150_000)
    index = json.loads((parts.folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in parts.folder.glob("*.safetensors"))
    assert len(files) == 5
    assert files[0] == "model-00001-of-00005.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    assert index["weight_map"].keys() == model.architecture.weight_shapes().keys()
    assert index["metadata"]["total_size"] == 4 * model.architecture.parameters()
    for file in files:
        assert sum(t.nbytes for t in load_file(parts.folder / file).values()) <= 150_000
    one, other = (open_engine(engine, m, lora=None).logits(IDS, last=4) for m in (whole, parts))
    np.testing.assert_array_equal(one, other)


def test_only_the_blocks_with_an_adapter_change(
    engine: Engine, random_model: MakeModel, tmp_path: Path
) -> None:
    model = random_model("qwen3", True)
    export = fused(model, random_adapter(model), engine, tmp_path / "fused")
    before = load_file(model.folder / "model.safetensors")
    after = load_file(export.folder / "model.safetensors")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    linear = model.architecture.linear_weights()
    assert changed == {name for name, (layer, _) in linear.items() if layer >= 1}


def test_what_is_written_may_be_read_by_whoever_may_read_the_folder(
    engine: Engine, random_model: MakeModel, tmp_path: Path
) -> None:
    model = random_model("qwen3", True)
    export = fused(model, random_adapter(model), engine, tmp_path / "fused")
    (tmp_path / "other").touch()
    rights = {p.stat().st_mode for p in (export.folder / "model.safetensors", tmp_path / "other")}
    assert len(rights) == 1
