"""Weights that are damaged, incomplete or another model's are refused before an engine starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwen_local.backends.base import Setup
from qwen_local.backends.machine import Engine
from qwen_local.backends.open import open_backend
from qwen_local.backends.select import Choice
from qwen_local.errors import ModelError
from qwen_local.models.families import architecture_of
from qwen_local.models.source import ModelFiles, fetch, find_model

MakeModel = Callable[[str, bool], ModelFiles]


@pytest.fixture
def copy(random_model: MakeModel, tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    for file in random_model("qwen3", True).folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refusal_of(folder: Path) -> list[str]:
    with pytest.raises(ModelError) as raised:
        fetch(find_model(str(folder)))
    return str(raised.value).split("\n\nhint: download or copy the model again")[:-1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_the_shapes_are_those_that_transformers_writes(
    model_type: str, tied: bool, random_model: MakeModel
) -> None:
    model = random_model(model_type, tied)
    written = load_file(model.folder / "model.safetensors")
    assert {n: a.shape for n, a in written.items()} == model.architecture.weight_shapes()
    assert sum(a.size for a in written.values()) == model.architecture.parameters()


def test_missing_unknown_and_misshapen_tensors_are_each_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.self_attn.k_norm.weight"]
    weights["model.norm.weight"] = np.zeros(3, np.float32)
    weights["model.layers.0.mlp.experts"] = np.zeros(3, np.float32)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]  # some publish a tied head
    save_file(weights, file)
    assert sorted(fault.strip() for fault in refusal_of(copy)) == [
        f"{copy}: model.layers.1.self_attn.k_norm.weight: missing from the weights",
        f"{copy}: model.safetensors: model.layers.0.mlp.experts: not a tensor of a qwen3 model",
        f"{copy}: model.safetensors: model.norm.weight: expected shape (64,); found (3,)",
    ]


def test_what_only_one_engine_passes_over_is_refused(copy: Path) -> None:
    """transformers stops at a head of another shape, mlx-lm at what it does not know."""
    file = copy / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"][1:]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)
    save_file(weights, file)
    assert [fault.strip() for fault in refusal_of(copy)] == [
        f"{copy}: model.safetensors: lm_head.weight: expected shape (320, 64); found (319, 64)",
        f"{copy}: model.safetensors: model.layers.0.self_attn.rotary_emb.inv_freq: "
        "not a tensor of a qwen3 model",
    ]


def test_what_both_engines_pass_over_is_left_alone(
    engine: Engine, random_model: MakeModel, tmp_path: Path
) -> None:
    """Old files of Qwen2 hold the frequencies of its positions."""
    folder = shutil.copytree(random_model("qwen2", True).folder, tmp_path / "qwen2")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    files = fetch(find_model(str(folder)))
    setup = Setup(model=files, lora=None, device="cpu", dtype="float32")
    open_backend(Choice(engine, "cpu", "a test"), setup)


def test_a_second_copy_of_the_weights_is_refused(copy: Path) -> None:
    """mlx-lm would load both files, transformers one."""
    weights = load_file(copy / "model.safetensors")
    norm = {"model.norm.weight": weights["model.norm.weight"] + 1}
    save_file(norm, copy / "model-old.safetensors")
    with pytest.raises(ModelError) as raised:
        fetch(find_model(str(copy)))
    assert str(raised.value) == (
        f"{copy}: model.safetensors: model.norm.weight: is also in another file\n\n"
        "hint: keep one of the two files"
    )


def test_an_adapter_beside_the_weights_is_refused(copy: Path) -> None:
    """transformers would put it into the model, mlx-lm not."""
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError) as raised:
        fetch(find_model(str(copy)))
    assert str(raised.value) == (
        f"{copy}: expected a model alone; found an adapter beside it\n\n"
        "hint: move adapter_config.json to another folder, or pass this one as `adapter`"
    )


def test_shards_without_an_index_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    with pytest.raises(ModelError) as raised:
        fetch(find_model(str(copy)))
    assert str(raised.value) == (
        f"{copy}: expected model.safetensors, or shards with an index; found neither\n\n"
        "hint: copy model.safetensors.index.json too, or download the model again"
    )


def test_a_file_that_was_cut_off_is_told(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    (fault,) = refusal_of(copy)
    assert fault.startswith(f"{copy}: model.safetensors: not a readable safetensors file: ")


def test_parameters_are_counted_from_the_shapes() -> None:
    shape = architecture_of(
        {
            "model_type": "qwen2",
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 10,
            "max_position_embeddings": 64,
            "tie_word_embeddings": False,
            "rope_theta": 1e4,
        }
    )
    embedding, head, norms = 80, 80, 3 * 8
    attention = (64 + 8) + 2 * (32 + 4) + 64  # q, k and v with their biases, o
    assert shape.parameters() == embedding + head + norms + attention + 3 * 128
