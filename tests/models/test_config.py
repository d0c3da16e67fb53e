"""What is refused of a model's folder, before any engine sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config, Qwen3Config

from qwen_local.errors import ModelError
from qwen_local.models.config import check_folder, config_faults, engine_config
from qwen_local.models.families import architecture_of

# As published: https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# As published: https://huggingface.co/Qwen/Qwen2.5-7B/blob/main/config.json
QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}

PUBLISHED_HINT = "use the model as the Qwen team published it"
PAGE_HINT = "take config.json from the model's page on the hub"
FILE_HINT = "take the file from the model's page on the hub"
FAMILY_HINT = "use a dense Qwen2.5, Qwen2.5-Coder or Qwen3 model"
COPY_HINT = "from a copy of the model"


def refusal(config: dict[str, Any]) -> str:
    faults = list(config_faults(config, "m: config.json"))
    assert faults
    return "\n\n".join(map(str, faults))


def accept(config: dict[str, Any]) -> None:
    assert list(config_faults(config, "m: config.json")) == []


def folder_refusal(folder: Path, *, weights: bool = True) -> str:
    with pytest.raises(ModelError) as raised:
        check_folder(folder, "m", weights=weights)
    return "\n\n".join(map(str, raised.value.faults))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, whole as far as names go."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def test_published_configs_are_taken() -> None:
    accept(QWEN3)
    accept(QWEN2)


def test_configs_written_by_transformers_5_are_taken() -> None:
    """It nests rope_theta in rope_parameters and lists the layer types."""
    small: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    accept(Qwen2Config(**small).to_diff_dict())
    accept(Qwen3Config(**small, head_dim=32).to_diff_dict())


def test_names_and_nulls_that_libraries_leave_behind_are_no_fault() -> None:
    accept({**QWEN3, "_name_or_path": "x", "auto_map": None, "quantization": None})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"model_type": "qwen3_moe"},
            f'model_type: expected qwen2 or qwen3; found "qwen3_moe"\n\nhint: {FAMILY_HINT}',
        ),
        (
            {"auto_map": {"AutoConfig": "evil.Config"}},
            'auto_map: names code to run: {"AutoConfig": "evil.Config"}\n\n'
            "hint: code that comes with a model is never run; use a model without it",
        ),
        (
            {"model_file": "evil.py"},
            'model_file: names code to run: "evil.py"\n\n'
            "hint: code that comes with a model is never run; use a model without it",
        ),
        (
            {"_attn_implementation_internal": "evil/kernel"},
            "_attn_implementation_internal: private key of a library, which may act on it: "
            f'"evil/kernel"\n\nhint: remove _attn_implementation_internal {COPY_HINT}',
        ),
        (
            {"attn_implementation": "evil/kernel"},
            "attn_implementation: chooses what the engine loads: "
            f'"evil/kernel"\n\nhint: remove attn_implementation {COPY_HINT}',
        ),
        (
            {"quantization_config": {"bits": 4}, "quantization": {"bits": 4}},
            "quantization: expected one value of bits and one of group_size for all layers; "
            'found {"bits": 4}\n\n'
            "hint: use the unquantized model, for example Qwen/Qwen3-0.6B, "
            "with model.quantization=4bit",
        ),
        (
            {"hidden_size": "1024"},
            f'hidden_size: expected a whole number above 0; found "1024"\n\nhint: {PAGE_HINT}',
        ),
        (
            {"num_hidden_layers": True},
            f"num_hidden_layers: expected a whole number above 0; found true\n\nhint: {PAGE_HINT}",
        ),
        (
            {"head_dim": None},
            f"head_dim: expected a whole number above 0; found null\n\nhint: {PAGE_HINT}",
        ),
        (
            {"num_key_value_heads": 5},
            "num_attention_heads: expected a multiple of num_key_value_heads (5); found 16\n\n"
            f"hint: {PAGE_HINT}",
        ),
        (
            {"tie_word_embeddings": 1},
            f"tie_word_embeddings: expected true or false; found 1\n\nhint: {PAGE_HINT}",
        ),
        (
            {"rope_theta": None},
            f"rope_theta: expected a number above 0; found nothing\n\nhint: {PAGE_HINT}",
        ),
        (
            {"rope_theta": float("nan")},
            f"rope_theta: expected a number above 0; found NaN\n\nhint: {PAGE_HINT}",
        ),
        (
            {"rope_parameters": {"rope_theta": 10_000, "rope_type": "default"}},
            "rope_theta: 1000000 here, but 10000 in rope_parameters; the engines would differ\n\n"
            f"hint: {PAGE_HINT}",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            'rope_scaling: expected no scaling of positions; found "yarn"\n\nhint: remove it from '
            "a copy of the model: only longer sequences need it",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            'rope_scaling: expected no scaling of positions; found "linear"\n\nhint: remove it '
            "from a copy of the model: only longer sequences need it",
        ),
        (
            {"is_causal": False},
            f"is_causal: expected true; found false\n\nhint: {PUBLISHED_HINT}",
        ),
        (
            {"rms_norm_eps": "1e-6"},
            f'rms_norm_eps: expected a number between 0 and 1; found "1e-6"\n\nhint: {PAGE_HINT}',
        ),
        (
            {"rope_theta": 1e308},
            f"rope_theta: expected a number above 0; found 1e+308\n\nhint: {PAGE_HINT}",
        ),
        (
            {"head_dim": 33},
            f"head_dim: expected an even number; found 33\n\nhint: {PAGE_HINT}",
        ),
        (
            {"use_sliding_window": True},
            f"use_sliding_window: expected false; found true\n\nhint: {PUBLISHED_HINT}",
        ),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types: expected full_attention only; "
            f'found ["full_attention", "sliding_attention"]\n\nhint: {PUBLISHED_HINT}',
        ),
        (
            {"hidden_act": "gelu"},
            f'hidden_act: expected "silu"; found "gelu"\n\nhint: {PUBLISHED_HINT}',
        ),
        (
            {"quantize_activations": True},
            f"quantize_activations: expected false; found true\n\nhint: {PUBLISHED_HINT}",
        ),
        (
            {"attention_dropout": 0.1},
            f"attention_dropout: expected 0; found 0.1\n\nhint: {PUBLISHED_HINT}",
        ),
        (
            {"architectures": ["Qwen3ForSequenceClassification"]},
            'architectures: expected ["Qwen3ForCausalLM"]; '
            f'found ["Qwen3ForSequenceClassification"]\n\nhint: {PUBLISHED_HINT}',
        ),
    ],
)
def test_a_config_is_refused_with_the_key_and_the_mend(
    change: dict[str, Any], expected: str
) -> None:
    assert refusal(QWEN3 | change) == f"m: config.json: {expected}"


UNQUANTIZED = "use the unquantized model, for example Qwen/Qwen3-0.6B, with model.quantization=4bit"
AFFINE = {"group_size": 64, "bits": 4, "mode": "affine"}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}


@pytest.mark.parametrize(
    "change",
    [
        {"quantization": AFFINE, "quantization_config": AFFINE},
        {"quantization": {"group_size": 32, "bits": 8}},
        {"quantization_config": NF4},
        {"quantization_config": NF4 | {"llm_int8_threshold": 5.0}},  # of no effect
        {"quantization_config": INT8 | {"llm_int8_threshold": 0.5, "load_in_4bit": False}},
        {"quantization_config": INT8 | {"llm_int8_skip_modules": ["lm_head", "((("]}},
    ],
)
def test_codes_that_an_engine_reads_are_taken(change: dict[str, Any]) -> None:
    accept(QWEN3 | change)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}},
            'quantization: mode: expected "affine"; found "mxfp4"',
        ),
        (
            {"quantization": {"group_size": 64, "bits": 4, "a.b": {"bits": 8}}},
            "quantization: expected one value of bits and one of group_size for all layers; "
            'found {"group_size": 64, "bits": 4, "a.b": {"bits": 8}}',
        ),
        (
            {"quantization": AFFINE, "quantization_config": NF4},
            "quantization_config: expected the value of quantization; found "
            '{"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb…',
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4}},
            "quantization_config: expected no quantization, MLX's affine one, or bitsandbytes NF4 "
            'or LLM.int8(); found {"quant_method": "awq", "bits": 4}',
        ),
        (
            {"quantization_config": NF4 | {"load_in_8bit": True}},
            "quantization_config: expected either load_in_4bit or load_in_8bit; "
            "found load_in_4bit and load_in_8bit",
        ),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": 1}},
            "quantization_config: expected either load_in_4bit or load_in_8bit; found neither",
        ),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            'quantization_config: bnb_4bit_quant_type: expected "nf4"; found "fp4"',
        ),
        (
            {"quantization_config": NF4 | {"bnb_4bit_quant_storage": "bfloat16"}},
            'quantization_config: bnb_4bit_quant_storage: expected "uint8"; found "bfloat16"',
        ),
        (
            {"quantization_config": INT8 | {"llm_int8_has_fp16_weight": True}},
            "quantization_config: llm_int8_has_fp16_weight: expected false; found true",
        ),
    ],
)
def test_codes_that_an_engine_would_read_otherwise_are_refused(
    change: dict[str, Any], expected: str
) -> None:
    assert refusal(QWEN3 | change) == f"m: config.json: {expected}\n\nhint: {UNQUANTIZED}"


def test_codes_of_mlx_that_mlx_lm_would_not_find_are_told_what_is_missing() -> None:
    """mlx-lm writes two keys, and of the second alone it wants `quant_method`."""
    assert refusal(QWEN3 | {"quantization_config": AFFINE}) == (
        "m: config.json: quantization: missing: mlx-lm does not read quantization_config\n\n"
        "hint: copy quantization_config to quantization in a copy of the model"
    )


@pytest.mark.parametrize("figure", ["hidden_size", "num_key_value_heads", "vocab_size", "head_dim"])
def test_a_figure_that_an_engine_would_guess_must_be_there(figure: str) -> None:
    config = {key: value for key, value in QWEN3.items() if key != figure}
    assert refusal(config) == (
        f"m: config.json: {figure}: expected a whole number above 0; found nothing\n\n"
        f"hint: {PAGE_HINT}"
    )


def test_a_head_of_qwen2_has_no_size_of_its_own() -> None:
    accept(QWEN2 | {"head_dim": 128})
    assert refusal(QWEN2 | {"head_dim": 64}) == (
        "m: config.json: head_dim: expected hidden_size / num_attention_heads (128); "
        f"found 64\n\nhint: {PAGE_HINT}"
    )
    assert refusal(QWEN2 | {"hidden_size": 3585}) == (
        "m: config.json: hidden_size: expected a multiple of num_attention_heads (28); "
        f"found 3585\n\nhint: {PAGE_HINT}"
    )


def test_every_fault_of_a_config_is_reported_at_once() -> None:
    change = {"auto_map": {}, "vocab_size": 0, "use_sliding_window": True, "_x": 1}
    assert refusal(QWEN3 | change).split("\n\n")[::2] == [
        "m: config.json: auto_map: names code to run: {}",
        "m: config.json: _x: private key of a library, which may act on it: 1",
        "m: config.json: vocab_size: expected a whole number above 0; found 0",
        "m: config.json: use_sliding_window: expected false; found true",
    ]


def test_another_family_that_names_code_is_told_both_and_no_more() -> None:
    config = {"model_type": "llama", "auto_map": {"AutoModel": "evil.M"}, "hidden_size": "x"}
    assert refusal(config).split("\n\n")[::2] == [
        'm: config.json: model_type: expected qwen2 or qwen3; found "llama"',
        'm: config.json: auto_map: names code to run: {"AutoModel": "evil.M"}',
    ]


def test_a_file_of_something_else_is_one_fault() -> None:
    assert refusal({"a": 1}) == (
        f"m: config.json: model_type: expected qwen2 or qwen3; found nothing\n\nhint: {FAMILY_HINT}"
    )


# ------------------------------------------------------------------------------ folders


def test_a_sound_folder_gives_its_config(folder: Path) -> None:
    config = check_folder(folder, "m")
    assert config == QWEN3
    assert architecture_of(config).parameters() == 596_049_920


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[]", "expected a JSON object; found []"),
        (b"", "not valid JSON: Expecting value: line 1 column 1 (char 0)"),
        (
            b"\xff\xfe",
            "not valid JSON: 'utf-8' codec can't decode byte 0xff in position 0: "
            "invalid start byte",
        ),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b" " * 1_000_001, "expected at most 1,000,000 bytes; found more"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_fault(
    folder: Path, content: bytes, problem: str
) -> None:
    (folder / "config.json").write_bytes(content)
    assert folder_refusal(folder) == f"m: config.json: {problem}\n\nhint: {FILE_HINT}"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "adapter_config.json",
            "m: expected a model; found an adapter\n\n"
            "hint: pass it as `adapter`, and its base model as `model`",
        ),
        (
            "model.gguf",
            "m: expected a model as safetensors; found GGUF\n\nhint: GGUF is for llama.cpp and "
            "Ollama; pass the run or folder that it was made from",
        ),
        (
            "notes.txt",
            "m: has no config.json\n\nhint: pass a model as safetensors with its config.json, "
            "for example Qwen/Qwen3-0.6B",
        ),
    ],
)
def test_a_folder_without_a_config_says_what_it_is(
    tmp_path: Path, file: str, expected: str
) -> None:
    (tmp_path / file).touch()
    assert folder_refusal(tmp_path) == expected


CONVERT = "hint: use the model as safetensors, or save it in that format where it was made"


def test_weights_that_could_run_code_are_refused_unopened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert folder_refusal(folder) == (f"m: expected *.safetensors; found no weights\n\n{CONVERT}")
    (folder / "pytorch_model.bin").touch()
    (folder / "old.pt").touch()
    assert folder_refusal(folder) == (
        "m: expected *.safetensors; found only old.pt, pytorch_model.bin, which could run code"
        f"\n\n{CONVERT}"
    )
    assert check_folder(folder, "m", weights=False) == QWEN3


def test_faults_of_config_and_weights_come_together(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(QWEN3 | {"vocab_size": 0}))
    assert folder_refusal(folder).split("\n\n")[::2] == [
        "m: config.json: vocab_size: expected a whole number above 0; found 0",
        "m: expected *.safetensors; found no weights",
    ]


def test_a_shard_that_is_missing_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert folder_refusal(folder) == (
        "m: model-2.safetensors: named in the index, but missing\n\n"
        "hint: copy or download the model again"
    )
    (folder / "model-2.safetensors").touch()
    check_folder(folder, "m")


def test_an_index_beside_a_whole_file_is_not_heeded(folder: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check_folder(folder, "m")


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}, {"a": "../x.safetensors"}])
def test_an_index_may_name_only_files_of_its_folder(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert folder_refusal(folder) == (
        "m: model.safetensors.index.json: weight_map: expected a file of this folder for each "
        "tensor\n\nhint: copy or download the model again"
    )


GIVEN = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "head_dim",
    "tie_word_embeddings",
)


def test_engines_are_given_the_figures_and_nothing_else() -> None:
    given = engine_config(QWEN3 | {"pad_token_id": 10**9, "use_cache": "x", "eos_token_id": "y"})
    assert given == {
        **{key: QWEN3[key] for key in GIVEN},
        "rms_norm_eps": QWEN3["rms_norm_eps"],
        "rope_theta": QWEN3["rope_theta"],
        "rope_parameters": {"rope_type": "default", "rope_theta": QWEN3["rope_theta"]},
    }
