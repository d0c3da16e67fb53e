"""Whole models as GGUF: what the files say, that they hold what was given, and nothing more."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from qwen_local.errors import ModelError
from qwen_local.export.gguf_about import About
from qwen_local.export.gguf_encoding import Outtype, encoding_of, rounding_bound
from qwen_local.export.gguf_model import write_model
from qwen_local.export.gguf_names import tensor_names
from qwen_local.export.gguf_read import HINT, GgufWeights
from qwen_local.export.merge import ExportError
from qwen_local.models.families import architecture_of
from qwen_local.models.source import ModelFiles, ModelSource
from tests.export.gguf_files import ABOUT, damaged, metadata, model_files, random_tensors

EVERY_MODEL = pytest.mark.parametrize(
    ("family", "tied"), [("qwen2", True), ("qwen2", False), ("qwen3", True), ("qwen3", False)]
)
EVERY_TYPE = pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])


def written(
    folder: Path, files: ModelFiles, outtype: Outtype = "f16", about: About = ABOUT
) -> Path:
    path = folder / "model.gguf"
    tensors = random_tensors(files.architecture)
    write_model(path, files=files, tensors=tensors, outtype=outtype, about=about)
    return path


@pytest.mark.slow
@EVERY_MODEL
@EVERY_TYPE
def test_every_tensor_comes_back_rounded_once(
    family: str, tied: bool, outtype: Outtype, tmp_path: Path
) -> None:
    files = model_files(tmp_path, family, tied)
    weights = GgufWeights(written(tmp_path, files, outtype), files.architecture)
    names = []
    for name, array in random_tensors(files.architecture):
        found = weights.read(name)
        bound = rounding_bound(array, encoding_of(array.shape, outtype))
        assert (str(found.dtype), found.shape) == ("float32", array.shape)
        assert (np.abs(found - array) <= bound).all()
        assert np.array_equal(weights.read(name, slice(3, 7)), found[3:7])
        names.append(name)
    assert names == list(files.architecture.weight_shapes())


@EVERY_TYPE
def test_matrices_are_in_the_type_asked_for_and_vectors_in_float32(
    outtype: Outtype, tmp_path: Path
) -> None:
    path = written(tmp_path, model_files(tmp_path, "qwen2", tied=False), outtype)
    kinds = {
        (tensor.tensor_type.name.lower(), len(tensor.shape))
        for tensor in gguf.GGUFReader(path).tensors
    }
    assert kinds == {(outtype, 2), ("f32", 1)}


def test_rows_that_are_no_whole_blocks_are_kept_as_f16(tmp_path: Path) -> None:
    files = model_files(tmp_path)
    odd = architecture_of({**files.config, "intermediate_size": 100})
    path = written(tmp_path, replace(files, architecture=odd), "q8_0")
    kinds = {
        tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(path).tensors
    }
    assert kinds["blk.0.ffn_down.weight"] == "f16"
    assert kinds["blk.0.ffn_up.weight"] == "q8_0"
    weights = GgufWeights(path, odd)
    for name, array in random_tensors(odd):
        error = np.abs(weights.read(name) - array)
        assert (error <= rounding_bound(array, encoding_of(array.shape, "q8_0"))).all()


def test_names_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """As in src/llama-arch.cpp of llama.cpp."""
    block = {
        "input_layernorm.weight": "attn_norm.weight",
        "post_attention_layernorm.weight": "ffn_norm.weight",
        "self_attn.q_proj.weight": "attn_q.weight",
        "self_attn.k_proj.weight": "attn_k.weight",
        "self_attn.v_proj.weight": "attn_v.weight",
        "self_attn.o_proj.weight": "attn_output.weight",
        "mlp.gate_proj.weight": "ffn_gate.weight",
        "mlp.up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
    }
    ends = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    head = {"lm_head.weight": "output.weight"}
    biases = {f"self_attn.{x}_proj.bias": f"attn_{x}.bias" for x in "qkv"}
    norms = {f"self_attn.{x}_norm.weight": f"attn_{x}_norm.weight" for x in "qk"}
    for family, tied, own, around in (
        ("qwen2", True, biases, ends),
        ("qwen3", False, norms, ends | head),
    ):
        expected = dict(around)
        for n in range(3):
            expected |= {f"model.layers.{n}.{a}": f"blk.{n}.{b}" for a, b in (block | own).items()}
        assert tensor_names(model_files(tmp_path, family, tied).architecture) == expected


@pytest.mark.slow
@EVERY_MODEL
def test_a_tied_model_has_no_output_matrix(family: str, tied: bool, tmp_path: Path) -> None:
    path = written(tmp_path, model_files(tmp_path, family, tied))
    names = {tensor.name for tensor in gguf.GGUFReader(path).tensors}
    assert ("output.weight" in names) == (not tied)


@pytest.mark.parametrize(("family", "head_dim"), [("qwen2", 16), ("qwen3", 24)])
def test_the_file_says_the_figures_of_the_model(family: str, head_dim: int, tmp_path: Path) -> None:
    said = metadata(written(tmp_path, model_files(tmp_path, family), "q8_0"))
    tokenizer = {key: said.pop(key) for key in list(said) if key.startswith("tokenizer.")}
    assert said == {
        "general.type": "model",
        "general.architecture": family,
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
        "general.file_type": 7,
        "general.quantization_version": 2,
        f"{family}.vocab_size": 2051,
        f"{family}.context_length": 256,
        f"{family}.embedding_length": 64,
        f"{family}.block_count": 3,
        f"{family}.feed_forward_length": 96,
        f"{family}.attention.head_count": 4,
        f"{family}.attention.head_count_kv": 2,
        f"{family}.attention.key_length": head_dim,
        f"{family}.attention.value_length": head_dim,
        f"{family}.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        f"{family}.rope.freq_base": 50_000.0,
    }
    lengths = {"tokens": 2051, "token_type": 2051, "merges": 1766}
    for key, length in lengths.items():
        assert len(tokenizer.pop(f"tokenizer.ggml.{key}")) == length
    assert tokenizer.pop("tokenizer.chat_template").startswith("{%- if tools %}")
    assert tokenizer == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": 2024,
        "tokenizer.ggml.bos_token_id": 2022,
        "tokenizer.ggml.padding_token_id": 2022,
        "tokenizer.ggml.add_bos_token": False,
    }


def test_a_folder_is_named_and_its_place_is_not_told(tmp_path: Path) -> None:
    base = tmp_path / "secret" / "own-1B"
    base.mkdir(parents=True)
    source = ModelSource(kind="folder", name=str(base), folder=base, revision=None)
    path = written(tmp_path, model_files(tmp_path), about=About(base=source))
    assert b"secret" not in path.read_bytes()
    said = {key: text for key, text in metadata(path).items() if "base_model" in key}
    assert said == {"general.base_model.count": 1, "general.base_model.0.name": "own-1B"}


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    files = model_files(tmp_path)
    last: list[weakref.ref[np.ndarray]] = []

    class Given(Iterator[tuple[str, np.ndarray]]):
        """A generator would itself hold what it gave last."""

        def __init__(self) -> None:
            self.names = iter(files.architecture.weight_shapes().items())

        def __next__(self) -> tuple[str, np.ndarray]:
            assert all(reference() is None for reference in last)
            name, shape = next(self.names)
            array = np.ones(shape, np.float32)
            last[:] = [weakref.ref(array)]
            return name, array

    write_model(tmp_path / "x", files=files, tensors=Given(), outtype="bf16", about=ABOUT)
    assert last


def test_a_number_beyond_f16_is_an_error(tmp_path: Path) -> None:
    files = model_files(tmp_path)
    tensors = dict(random_tensors(files.architecture))
    tensors["model.layers.1.mlp.up_proj.weight"][5, 5] = -70_000
    with pytest.raises(ExportError) as error:
        write_model(
            tmp_path / "x", files=files, tensors=tensors.items(), outtype="f16", about=ABOUT
        )
    assert str(error.value) == (
        "model.layers.1.mlp.up_proj.weight holds 70000; the largest f16 is 65504"
        "\n\nhint: pass `outtype=bf16`"
    )


def test_a_folder_that_cannot_be_written_is_one_clean_error(tmp_path: Path) -> None:
    files = model_files(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=rf"^{re.escape(str(tmp_path))}/file: cannot be written"):
        written(tmp_path / "file", files)


def rewritten(path: Path, change: Any) -> None:
    """A file with other tensors: change(name -> (array, type)) in place."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: (np.array(t.data), t.tensor_type) for t in reader.tensors}
    architecture = str(metadata(path)["general.architecture"])
    change(tensors)
    writer = gguf.GGUFWriter(path.with_name("changed.gguf"), architecture)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_another_models_file_is_refused_with_every_fault(tmp_path: Path) -> None:
    files = model_files(tmp_path)
    kind = gguf.GGMLQuantizationType

    def change(tensors: dict[str, Any]) -> None:
        del tensors["blk.1.attn_q_norm.weight"]
        tensors["blk.0.ffn_up.weight"] = (np.zeros((96, 65), np.float16), kind.F16)
        tensors["output_norm.weight"] = (np.zeros(64, np.int32), kind.I32)
        tensors["blk.9.attn_norm.weight"] = (np.zeros(64, np.float32), kind.F32)

    rewritten(written(tmp_path, files), change)
    path = tmp_path / "changed.gguf"
    with pytest.raises(ModelError) as error:
        GgufWeights(path, files.architecture)
    assert [str(fault) for fault in error.value.faults] == [
        f"{path}: output_norm.weight: expected f32, f16, bf16, q8_0; found I32\n\nhint: {HINT}",
        f"{path}: blk.0.ffn_up.weight: expected shape (96, 64); found (96, 65)\n\nhint: {HINT}",
        f"{path}: blk.1.attn_q_norm.weight: missing\n\nhint: {HINT}",
        f"{path}: blk.9.attn_norm.weight: not a tensor of this model\n\nhint: {HINT}",
    ]
    with pytest.raises(ModelError) as other:
        GgufWeights(path, model_files(tmp_path, "qwen2").architecture)
    assert str(other.value) == (
        f'{path}: general.architecture: expected qwen2; found "qwen3"\n\nhint: {HINT}'
    )


@pytest.mark.slow
def test_damage_is_one_clean_error(tmp_path: Path) -> None:
    files = model_files(tmp_path)
    path = written(tmp_path, files)
    content, refused = path.read_bytes(), 0
    for changed in damaged(content, places=40):
        path.write_bytes(changed)
        try:
            GgufWeights(path, files.architecture)
        except ModelError as error:
            refused += 1
            assert "\n\nhint: " in str(error)
        else:
            assert len(changed) == len(content)
    assert refused >= 40


@pytest.mark.slow
def test_a_length_beyond_the_file_is_refused_at_once(tmp_path: Path) -> None:
    """2^60 token types, which the library alone would set out to count."""
    files = model_files(tmp_path)
    path = written(tmp_path, files)
    content = path.read_bytes()
    key = b"tokenizer.ggml.token_type"
    place = content.index(key) + len(key) + 8
    assert int.from_bytes(content[place : place + 8], "little") == 2051
    path.write_bytes(content[:place] + (2**60).to_bytes(8, "little") + content[place + 8 :])
    with pytest.raises(ModelError) as error:
        GgufWeights(path, files.architecture)
    assert str(error.value) == (
        f"{path}: not a readable GGUF file: it is truncated at {len(content):,} bytes"
        f"\n\nhint: {HINT}"
    )
