"""Adapters as GGUF: what the files say, and that they hold the adapter bit by bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from qwen_local.adapters.lora import Adapter, lora_name
from qwen_local.errors import ModelError
from qwen_local.export.gguf_adapter import read_adapter, write_adapter
from qwen_local.export.gguf_read import HINT
from qwen_local.export.merge import ExportError
from qwen_local.job.schema import LoraSpec
from qwen_local.models.source import ModelFiles
from tests.export.gguf_files import ABOUT, damaged, metadata, model_files, random_adapter

SPEC = LoraSpec(rank=4, alpha=12, dropout=0.0)


def written(folder: Path, files: ModelFiles, adapter: Adapter) -> Path:
    path = folder / "adapter.gguf"
    write_adapter(path, adapter=adapter, architecture=files.architecture, about=ABOUT)
    return path


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    "lora",
    [
        SPEC,
        LoraSpec(rank=4, alpha=7.5, layers=2, targets=("q_proj", "down_proj")),
        LoraSpec(rank=8, alpha=16, rslora=True),
    ],
)
def test_the_adapter_comes_back_bit_by_bit(family: str, lora: LoraSpec, tmp_path: Path) -> None:
    files = model_files(tmp_path, family)
    adapter = random_adapter(files.architecture, lora)
    held = read_adapter(written(tmp_path, files, adapter), files.architecture)
    assert held.arrays.keys() == adapter.arrays.keys()
    for name, array in adapter.arrays.items():
        assert held.arrays[name].dtype == np.float32
        assert np.array_equal(held.arrays[name], array), name
    assert held.scale == pytest.approx(lora.scale, rel=1e-7)
    assert held.rank == lora.rank


def test_llama_cpp_divides_alpha_by_the_rank_and_so_gets_the_scale(tmp_path: Path) -> None:
    """Of rsLoRA: 16 / sqrt(8) x 8."""
    files = model_files(tmp_path)
    rslora = random_adapter(files.architecture, LoraSpec(rank=8, alpha=16, rslora=True))
    said = metadata(written(tmp_path, files, rslora))
    assert said.pop("adapter.lora.alpha") == pytest.approx(45.254834, rel=1e-7)
    assert said == {
        "general.type": "adapter",
        "general.architecture": "qwen3",
        "general.name": "Qwen3-240K-my run",
        "general.basename": "Qwen3",
        "general.finetune": "my run",
        "general.version": "v1.0",
        "general.size_label": "240K",
        "general.license": "apache-2.0",
        "general.base_model.count": 1,
        "general.base_model.0.name": "Qwen3-240K",
        "general.base_model.0.organization": "Qwen",
        "general.base_model.0.repo_url": "https://huggingface.co/Qwen/Qwen3-240K",
        "general.file_type": 0,
        "adapter.type": "lora",
    }


def test_matrices_stand_as_llama_cpp_multiplies_them(tmp_path: Path) -> None:
    """Its shapes are written the other way round: (in, rank) and (rank, out)."""
    files = model_files(tmp_path)
    adapter = random_adapter(files.architecture, LoraSpec(rank=4, layers=1, targets=("v_proj",)))
    reader = gguf.GGUFReader(written(tmp_path, files, adapter))
    assert [(t.name, *t.shape.tolist()) for t in reader.tensors] == [
        ("blk.2.attn_v.weight.lora_a", 64, 4),
        ("blk.2.attn_v.weight.lora_b", 4, 48),
    ]


def test_scattered_layers_are_written_as_they_are(tmp_path: Path) -> None:
    files = model_files(tmp_path)
    adapter = random_adapter(files.architecture, SPEC)
    kept = {
        name: array
        for name, array in adapter.arrays.items()
        if ("layers.0." in name and "q_proj" in name) or ("layers.2." in name and "up_proj" in name)
    }
    path = written(tmp_path, files, replace(adapter, arrays=kept))
    assert read_adapter(path, files.architecture).arrays.keys() == kept.keys()


def test_a_dora_is_refused(tmp_path: Path) -> None:
    files = model_files(tmp_path)
    adapter = random_adapter(files.architecture, SPEC)
    magnitude = {lora_name(0, "self_attn.q_proj", "m"): np.ones(96, np.float32)}
    with pytest.raises(ModelError) as error:
        written(tmp_path, files, replace(adapter, arrays={**adapter.arrays, **magnitude}))
    assert str(error.value) == (
        "adapter: has DoRA magnitudes, which llama.cpp does not support"
        "\n\nhint: merge it: `qwen-local export --to gguf`"
    )
    assert not (tmp_path / "adapter.gguf").exists()


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    files = model_files(tmp_path)
    adapter = random_adapter(files.architecture, SPEC)
    name = lora_name(1, "mlp.up_proj", "B")
    adapter.arrays[name][3, 2] = np.nan
    with pytest.raises(ExportError) as error:
        written(tmp_path, files, adapter)
    assert str(error.value) == f"{name} holds values that are not finite"


def changed(path: Path, **keys: str | float) -> gguf.GGUFWriter:
    """A writer of a file that says other things than ours."""
    writer = gguf.GGUFWriter(path, str(keys.pop("architecture", "qwen3")))
    said: dict[str, str | float] = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    for key, value in (said | {k.replace("__", "."): v for k, v in keys.items()}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_float32(key, value)
    return writer


def finish(writer: gguf.GGUFWriter, tensors: dict[str, Any]) -> None:
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def refusal(path: Path, files: ModelFiles) -> list[str]:
    with pytest.raises(ModelError) as error:
        read_adapter(path, files.architecture)
    ending = f"\n\nhint: {HINT}"
    said = [str(fault) for fault in error.value.faults]
    assert all(text.startswith(f"{path}: ") and text.endswith(ending) for text in said)
    return [text.removeprefix(f"{path}: ").removesuffix(ending) for text in said]


def test_every_fault_of_a_file_is_told(tmp_path: Path) -> None:
    files, path = model_files(tmp_path), tmp_path / "theirs.gguf"
    not_a_number = np.zeros((4, 64), np.float32)
    not_a_number[1, 1] = np.nan
    finish(
        changed(
            path,
            architecture="llama",
            general__type="model",
            adapter__type="control_vector",
            adapter__lora__alpha=float("nan"),
        ),
        {
            "blk.0.attn_q.weight.lora_a": np.zeros((4, 64), np.float32),
            "blk.0.attn_k.weight.lora_a": not_a_number,
            "blk.0.attn_k.weight.lora_b": np.zeros((4, 48), np.float32),
            "blk.0.attn_v.weight.lora_a": np.zeros((4, 64), np.int32),
            "blk.0.attn_v.weight.lora_b": np.zeros((48, 4), np.float16),
            "blk.7.attn_v.weight.lora_a": np.zeros((4, 64), np.float32),
            "../../x": np.zeros(3, np.float32),
        },
    )
    assert refusal(path, files) == [
        'general.type: expected adapter; found "model"',
        'general.architecture: expected qwen3; found "llama"',
        'adapter.type: expected lora; found "control_vector"',
        "adapter.lora.alpha: expected a number other than 0; found NaN",
        "../../x: not an adapter matrix of this model",
        "blk.0.attn_k.weight.lora_a: holds values that are not finite",
        "blk.0.attn_k.weight.lora_b: expected shape (48, 4); found (4, 48)",
        "blk.0.attn_q.weight.lora_b: missing",
        "blk.0.attn_v.weight.lora_a: expected F32, F16 or BF16; found I32",
        "blk.7.attn_v.weight.lora_a: not an adapter matrix of this model",
    ]


def test_ranks_that_differ_are_refused(tmp_path: Path) -> None:
    """There is one scale, and llama.cpp finds it by the rank of each."""
    files, path = model_files(tmp_path), tmp_path / "theirs.gguf"
    finish(
        changed(path),
        {
            "blk.0.attn_q.weight.lora_a": np.zeros((8, 64), np.float32),
            "blk.0.attn_q.weight.lora_b": np.zeros((96, 8), np.float32),
            "blk.1.attn_q.weight.lora_a": np.zeros((4, 64), np.float32),
            "blk.1.attn_q.weight.lora_b": np.zeros((96, 4), np.float32),
        },
    )
    assert refusal(path, files) == [
        "blk.1.attn_q.weight.lora_a: expected shape (8, 64); found (4, 64)",
        "blk.1.attn_q.weight.lora_b: expected shape (96, 8); found (96, 4)",
    ]


def test_a_file_without_matrices_or_with_empty_ones_holds_no_adapter(tmp_path: Path) -> None:
    files, path = model_files(tmp_path), tmp_path / "theirs.gguf"
    finish(changed(path), {})
    assert refusal(path, files) == ["holds no adapter of this model"]
    finish(
        changed(path),
        {
            "blk.0.attn_q.weight.lora_a": np.zeros((0, 64), np.float32),
            "blk.0.attn_q.weight.lora_b": np.zeros((96, 0), np.float32),
        },
    )
    assert refusal(path, files) == [
        "holds no adapter of this model",
        "blk.0.attn_q.weight.lora_a: not an adapter matrix of this model",
        "blk.0.attn_q.weight.lora_b: not an adapter matrix of this model",
    ]


def test_alpha_0_would_be_scale_1_to_llama_cpp_and_is_refused(tmp_path: Path) -> None:
    files, path = model_files(tmp_path), tmp_path / "theirs.gguf"
    finish(
        changed(path, adapter__lora__alpha=0.0),
        {
            "blk.0.attn_q.weight.lora_a": np.zeros((4, 64), np.float32),
            "blk.0.attn_q.weight.lora_b": np.zeros((96, 4), np.float32),
        },
    )
    assert refusal(path, files) == ["adapter.lora.alpha: expected a number other than 0; found 0.0"]


@pytest.mark.slow
def test_damage_is_one_clean_error(tmp_path: Path) -> None:
    files = model_files(tmp_path)
    adapter = random_adapter(files.architecture, SPEC)
    path = written(tmp_path, files, adapter)
    content, refused = path.read_bytes(), 0
    for bytes_ in damaged(content, places=200):
        path.write_bytes(bytes_)
        try:
            read_adapter(path, files.architecture)
        except ModelError as error:
            refused += 1
            assert "\n\nhint: " in str(error)
        else:
            assert len(bytes_) == len(content)
    assert refused >= 200
