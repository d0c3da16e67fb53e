"""Counts and names that come from the blocks, also where blocks differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from qwen_local.adapters.lora import Adapter, array_shapes, arrays_of_block, lora_shapes
from qwen_local.adapters.mlx_layout import mlx_config
from qwen_local.adapters.peft_layout import peft_config
from qwen_local.export.blocks import WeightSource
from qwen_local.job.schema import LoraSpec
from qwen_local.models.architecture import Block, Linear
from qwen_local.models.families.family import Sizes
from qwen_local.models.families.qwen3 import QWEN3
from qwen_local.models.source import ModelFiles

DENSE = QWEN3.architecture(
    Sizes(hidden=8, intermediate=20, heads=2, kv_heads=1, head_dim=6),
    layers=3,
    vocabulary=10,
    tied=True,
    rope_theta=1e4,
    positions=64,
)
OTHER = Block(
    kind="attention",
    linears={
        "in_proj": Linear(path="mixer.in_proj", shape=(24, 8)),
        "up_proj": Linear(path="mlp.up_proj", shape=(40, 8)),
    },
    tensors={
        "mixer.in_proj.weight": (24, 8),
        "mixer.decay": (4,),
        "mlp.up_proj.weight": (40, 8),
    },
)
MIXED = replace(DENSE, blocks=(DENSE.blocks[0], OTHER, DENSE.blocks[2]))
LORA = LoraSpec(rank=2, targets=("q_proj", "up_proj"), dropout=0.0)


def test_every_block_has_its_own_tensors() -> None:
    own = {
        name.removeprefix("model.layers.1."): shape for name, shape in MIXED.weight_shapes().items()
    }
    assert own.items() >= OTHER.tensors.items()
    block, other = (DENSE.parameters() - 88) // 3, 24 * 8 + 4 + 40 * 8
    assert MIXED.parameters() == 88 + 2 * block + other
    assert [place for place in MIXED.linear_weights().values() if place[0] == 1] == [
        (1, "mixer.in_proj"),
        (1, "mlp.up_proj"),
    ]


def test_an_adapter_covers_the_targets_that_a_block_has() -> None:
    shapes = lora_shapes(MIXED, LORA)
    assert [name for name in shapes if ".layers.1." in name] == [
        "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight",
        "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight",
    ]
    assert shapes["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"] == (40, 2)
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    assert MIXED.lora_parameters(2, LORA.target_names, 3) == count
    last = sum(int(np.prod(shape)) for name, shape in shapes.items() if ".layers.0." not in name)
    assert MIXED.lora_parameters(2, LORA.target_names, 2) == last


def test_configs_name_short_names_where_they_cover_every_block_and_paths_where_not() -> None:
    shapes = lora_shapes(MIXED, LORA)
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    adapter = Adapter("m", LORA, MIXED.blocks, arrays)
    assert peft_config(adapter)["target_modules"] == ["q_proj", "up_proj"]
    assert peft_config(adapter)["layers_to_transform"] is None
    assert mlx_config(adapter)["lora_parameters"]["keys"] == ["self_attn.q_proj", "mlp.up_proj"]
    few = {name: array for name, array in arrays.items() if ".layers.1." not in name}
    few |= {name: arrays[name] for name in array_shapes(MIXED, [(1, "mlp.up_proj")], 2)}
    del few["base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"]
    del few["base_model.model.model.layers.2.mlp.up_proj.lora_B.weight"]
    scattered = peft_config(replace(adapter, arrays=few))
    assert scattered["target_modules"] == [
        "layers.0.self_attn.q_proj",
        "layers.0.mlp.up_proj",
        "layers.1.mlp.up_proj",
        "layers.2.self_attn.q_proj",
    ]


def test_one_block_is_written_with_its_own_tensors_as_block_0(tmp_path: Path) -> None:
    files = ModelFiles(name="m", folder=tmp_path, commit=None, config={}, architecture=MIXED)
    shapes = MIXED.weight_shapes()
    asked: list[str] = []

    def tensor(name: str) -> np.ndarray:
        asked.append(name)
        return np.full(shapes[name], len(asked), np.float32)

    source = WeightSource.from_arrays(files, lambda name, rows: np.zeros(1), tensor)
    source.write_block(tmp_path / "model.safetensors", 1)
    assert asked == [f"model.layers.1.{name}" for name in OTHER.tensors]
    written = {
        name: array.shape for name, array in load_file(tmp_path / "model.safetensors").items()
    }
    assert written == {
        "model.embed_tokens.weight": (1, 8),
        "model.norm.weight": (8,),
        **{f"model.layers.0.{name}": shape for name, shape in OTHER.tensors.items()},
    }


def test_the_arrays_of_a_block_are_named_as_in_a_model_of_one_block() -> None:
    arrays = {name: np.zeros(shape) for name, shape in lora_shapes(DENSE, LORA).items()}
    first = arrays_of_block(arrays, 0)
    assert arrays_of_block(arrays, 2).keys() == first.keys()
    assert len(first) == 4
