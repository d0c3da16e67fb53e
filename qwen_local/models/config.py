"""What must be true of a model's folder before any engine sees it.

Both engines build a model from its config.json, and libraries beneath them have run code that such
a file named (transformers: CVE-2026-4372 and CVE-2026-5241; mlx-lm: CVE-2026-5843). So a config is
read here first, as plain JSON, and refused where it names code, a kernel or a file, where it is of
a family that we do not train, or where the two engines would read it differently. A figure that one
of them would fill with a default of its own must therefore be there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen_local.errors import Fault, ModelError
from qwen_local.models.architecture import MODEL_TYPES

LARGEST_CONFIG = 1_000_000
"""Bytes. The longest published config.json is a few thousand."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Files that can run code when they are loaded, and so never are."""

CODE = ("auto_map", "model_file", "custom_pipelines")
"""Keys that name code to run."""
CHOICES = ("attn_implementation", "experts_implementation", "transformers_weights")
"""Keys that let a model choose kernels or files; transformers heeds them in a config.json."""
INTEGERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
LARGEST = 2**31 - 1
LARGEST_BASE = 1e12
"""Of `rope_theta`; published models have up to 5e6."""
RMS_NORM_EPS = 1e-6
"""Where config.json has none: transformers' default."""
FIXED: Mapping[str, object] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0,
    "use_sliding_window": False,
    "is_causal": True,
    "quantize_activations": False,
}
"""What the two engines agree on; any other value is honored by one of them at most."""
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
"""What `mlx.core.quantize` makes in its affine mode."""
BITSANDBYTES: Mapping[str, Mapping[str, object]] = {
    "load_in_4bit": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "uint8"},
    "load_in_8bit": {"llm_int8_threshold": 6.0, "llm_int8_has_fp16_weight": False},
}
"""The two schemes of bitsandbytes that are read, each with the settings that it is read with."""
QUANTIZED_HINT = (
    "take the model that this one was quantized from, for example Qwen/Qwen3-0.6B, with "
    "model.quantization=4bit"
)
FULL = "full_attention"
"""The kind of every layer, where `layer_types` says so."""
CLASSES: Mapping[str, str] = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def engine_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What both engines are given of a config.json that was checked, and nothing else.

    A key that is not here (a token id, a cache switch, ...) could make them differ or fail.
    """
    keys = (*INTEGERS, "head_dim") if config["model_type"] == "qwen3" else INTEGERS
    rope = config.get("rope_parameters") or config
    theta = float(rope.get("rope_theta") or config["rope_theta"])
    return {
        **{key: config[key] for key in ("model_type", *keys, "tie_word_embeddings")},
        "rms_norm_eps": float(config.get("rms_norm_eps", RMS_NORM_EPS)),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Refuse a config.json that we will not or cannot train.

    Args:
        config: its content.
        name: the model, as messages name it.

    Raises:
        ModelError: every fault at once.
    """
    if faults := list(config_faults(config, f"{name}: config.json")):
        raise ModelError(faults)


def check_folder(folder: Path, name: str, *, weights: bool = True) -> dict[str, Any]:
    """The content of a folder's config.json, once nothing in the folder is to be refused.

    Args:
        folder: with config.json and, where `weights`, *.safetensors.
        name: the model, as messages name it.
        weights: whether the weights must be there.

    Raises:
        ModelError: every fault at once.
    """
    where, path = f"{name}: config.json", folder / "config.json"
    if not path.exists():
        raise ModelError([_no_config(folder, name)])
    config = _read_json(path, where)
    faults = [config] if isinstance(config, Fault) else list(config_faults(config, where))
    if weights:
        faults += weight_faults(folder, name)
    if faults or isinstance(config, Fault):
        raise ModelError(faults)
    return config


def _no_config(folder: Path, name: str) -> Fault:
    """A folder without config.json, told apart by what is there instead."""
    if (folder / "adapter_config.json").exists():
        hint = "give it as --adapter, and its base model as --model"
        return Fault(name, "expected a model; found an adapter", hint)
    hint = "give a model as safetensors with its config.json, for example Qwen/Qwen3-0.6B"
    if any(folder.glob("*.gguf")):
        hint = "GGUF is for llama.cpp and Ollama; give the run or the folder that it was made from"
        return Fault(name, "expected a model as safetensors; found GGUF", hint)
    return Fault(name, "has no config.json", hint)


def config_faults(config: Mapping[str, Any], where: str) -> Iterator[Fault]:
    """Everything about a config.json that must be mended or refused.

    Args:
        config: its content.
        where: how messages name the file.
    """
    family = config.get("model_type")
    if family not in MODEL_TYPES:
        problem = f"expected {' or '.join(MODEL_TYPES)}; found {_found(config, 'model_type')}"
        hint = "take a dense Qwen2.5, Qwen2.5-Coder or Qwen3 model; those are trained here"
        yield Fault(f"{where}: model_type", problem, hint)
        if family is None or not isinstance(family, str):
            return  # perhaps no model's file at all: the rest would be noise
    yield from _names_of_code(config, where)
    if family in MODEL_TYPES:
        yield from _quantized(config, where)
        yield from _figures(config, where)
        yield from _variants(config, where)


def _names_of_code(config: Mapping[str, Any], where: str) -> Iterator[Fault]:
    for key, value in config.items():
        if value is None or key == "_name_or_path":
            continue
        if key in CODE:
            problem = f"names code to run: {shown(value)}"
            hint = "no code of a model is run; take a model without it"
        elif key in CHOICES:
            problem = f"chooses what the engine is to load: {shown(value)}"
            hint = f"remove {key} from a copy of the model"
        elif key.startswith("_"):
            problem = f"private to a library, which may act on it: {shown(value)}"
            hint = f"remove {key} from a copy of the model"
        else:
            continue
        yield Fault(f"{where}: {key}", problem, hint)


def _quantized(config: Mapping[str, Any], where: str) -> Iterator[Fault]:
    """MLX's affine scheme is read, which mlx-lm writes under both keys, and bitsandbytes' two."""
    affine, theirs = config.get("quantization"), config.get("quantization_config")
    where_theirs = f"{where}: quantization_config"
    if affine is not None:
        yield from _affine(affine, f"{where}: quantization")
        if theirs not in (None, affine):
            problem = f"expected what quantization says; found {shown(theirs)}"
            yield Fault(where_theirs, problem, QUANTIZED_HINT)
    elif isinstance(theirs, dict) and theirs.get("quant_method") == "bitsandbytes":
        yield from _bitsandbytes(theirs, where_theirs)
    elif theirs is not None and not list(_affine(theirs, where)):
        problem = "missing beside quantization_config, and mlx-lm reads MLX's codes by it alone"
        hint = "write quantization_config as quantization, too, in a copy of the model"
        yield Fault(f"{where}: quantization", problem, hint)
    elif theirs is not None:
        problem = "expected floats, MLX's affine codes, or NF4 or LLM.int8() of bitsandbytes"
        yield Fault(where_theirs, f"{problem}; found {shown(theirs)}", QUANTIZED_HINT)


def _affine(given: object, where: str) -> Iterator[Fault]:
    """What keeps these from being settings of MLX's affine scheme, the same for all layers."""
    if isinstance(given, dict) and given.get("mode", "affine") != "affine":
        problem = f'expected "affine"; found {shown(given["mode"])}'
        yield Fault(f"{where}: mode", problem, QUANTIZED_HINT)
    elif not (
        isinstance(given, dict)
        and given.keys() <= {"bits", "group_size", "mode"}
        and type(given.get("bits")) is int
        and given["bits"] in AFFINE_BITS
        and type(given.get("group_size")) is int
        and given["group_size"] in AFFINE_GROUPS
    ):
        problem = "expected one number of bits and one group_size for all layers"
        yield Fault(where, f"{problem}; found {shown(given)}", QUANTIZED_HINT)


def _bitsandbytes(theirs: Mapping[str, Any], where: str) -> Iterator[Fault]:
    """What these settings have otherwise than the engine reads codes.

    Which layers are quantized follows from the files, whatever `llm_int8_skip_modules` says.
    """
    chosen = [key for key in BITSANDBYTES if theirs.get(key) is True]
    if len(chosen) != 1:
        found = " and ".join(chosen) or "neither"
        problem = f"expected either {' or '.join(BITSANDBYTES)}; found {found}"
        yield Fault(where, problem, QUANTIZED_HINT)
        return
    given = {"bnb_4bit_quant_type": "fp4"} | dict(theirs)  # the library's default
    for key, value in BITSANDBYTES[chosen[0]].items():
        if given.get(key) not in (None, value):
            problem = f"expected {shown(value)}; found {shown(given[key])}"
            yield Fault(f"{where}: {key}", problem, QUANTIZED_HINT)


def _figures(config: Mapping[str, Any], where: str) -> Iterator[Fault]:
    hint = "take config.json from the model's page on the hub"
    needed = (*INTEGERS, "head_dim") if config["model_type"] == "qwen3" else INTEGERS
    figures = {key: config.get(key) for key in needed}
    faulty = [
        key for key, value in figures.items() if type(value) is not int or not 0 < value <= LARGEST
    ]
    for key in faulty:
        problem = f"expected a whole number above 0; found {_found(config, key)}"
        yield Fault(f"{where}: {key}", problem, hint)
    if not faulty and "head_dim" in figures and config["head_dim"] % 2:
        problem = f"expected an even number; found {config['head_dim']}"
        yield Fault(f"{where}: head_dim", problem, hint)
    epsilon = config.get("rms_norm_eps", RMS_NORM_EPS)
    if not _is_number(epsilon) or not 0 < epsilon < 1:
        problem = f"expected a number between 0 and 1; found {shown(epsilon)}"
        yield Fault(f"{where}: rms_norm_eps", problem, hint)
    if not faulty:
        yield from _head_counts(config, where, hint)
    if not isinstance(config.get("tie_word_embeddings"), bool):
        problem = f"expected true or false; found {_found(config, 'tie_word_embeddings')}"
        yield Fault(f"{where}: tie_word_embeddings", problem, hint)
    rope = config.get("rope_parameters")
    homes = [config] if rope is None else [config, rope] if isinstance(rope, dict) else []
    bases = [home["rope_theta"] for home in homes if home.get("rope_theta") is not None]
    if not bases or not all(_is_number(base) and 0 < base <= LARGEST_BASE for base in bases):
        found = ", ".join(map(shown, bases)) or "nothing"
        yield Fault(f"{where}: rope_theta", f"expected a number above 0; found {found}", hint)
    elif len(set(bases)) > 1:
        problem = f"{bases[0]} here, but {bases[1]} in rope_parameters; each engine takes another"
        yield Fault(f"{where}: rope_theta", problem, hint)


def _head_counts(config: Mapping[str, Any], where: str, hint: str) -> Iterator[Fault]:
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % kv_heads:
        problem = f"expected a multiple of num_key_value_heads ({kv_heads}); found {heads}"
        yield Fault(f"{where}: num_attention_heads", problem, hint)
    if config["model_type"] == "qwen3":
        return
    hidden, size = config["hidden_size"], config.get("head_dim")
    if hidden % heads:
        problem = f"expected a multiple of num_attention_heads ({heads}); found {hidden}"
        yield Fault(f"{where}: hidden_size", problem, hint)
    elif size not in (None, hidden // heads):  # heeded by transformers, and not by mlx-lm
        problem = f"expected hidden_size / num_attention_heads ({hidden // heads}); found {size}"
        yield Fault(f"{where}: head_dim", problem, hint)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _variants(config: Mapping[str, Any], where: str) -> Iterator[Fault]:
    """Forms of the family that one engine trains and the other does not, or differently."""
    hint = "take the model as the Qwen team published it"
    for key, value in FIXED.items():
        if config.get(key) not in (None, value):
            problem = f"expected {shown(value)}; found {shown(config[key])}"
            yield Fault(f"{where}: {key}", problem, hint)
    layers = config.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or set(map(str, layers)) - {FULL}):
        yield Fault(f"{where}: layer_types", f"expected {FULL} only; found {shown(layers)}", hint)
    wanted = CLASSES[config["model_type"]]
    if config.get("architectures") not in (None, [wanted]):
        problem = f'expected ["{wanted}"]; found {shown(config["architectures"])}'
        yield Fault(f"{where}: architectures", problem, hint)
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key)
        if rope is None:
            continue
        kind = (
            rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
        )
        if kind != "default":
            problem = f"expected no scaling of positions; found {shown(kind)}"
            hint = "remove it from a copy of the model: it only serves rows beyond its positions"
            yield Fault(f"{where}: {key}", problem, hint)


def weight_faults(folder: Path, name: str) -> Iterator[Fault]:
    """What keeps a folder's weights from being loaded.

    Args:
        folder: as published: one *.safetensors, or several with an index.
        name: the model, as messages name it.
    """
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        found = f"only {', '.join(pickles)}, which could run code" if pickles else "no weights"
        hint = "take the model as safetensors, or save it so where it was made"
        yield Fault(name, f"expected *.safetensors; found {found}", hint)
        return
    if (folder / "hf_quant_config.json").exists():  # mlx-lm heeds it, transformers does not
        hint = "take the model that this one was quantized from"
        yield Fault(f"{name}: hf_quant_config.json", "chooses a quantization of its own", hint)
    if (folder / "adapter_config.json").exists():
        hint = "move adapter_config.json away, or give it as --adapter"
        yield Fault(name, "expected a bare model; found an adapter beside it", hint)
    if (folder / "model.safetensors").exists():
        return
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        problem = "expected model.safetensors, or shards with an index; found neither"
        yield Fault(name, problem, f"copy {index.name} too, or download the model again")
        return
    where = f"{name}: {index.name}"
    content = _read_json(index, where, largest=100 * LARGEST_CONFIG)
    if isinstance(content, Fault):
        yield content
        return
    shards = content.get("weight_map")
    files = set(shards.values()) if isinstance(shards, dict) else set()
    hint = "copy or download the model again"
    if not files or not all(isinstance(file, str) and Path(file).name == file for file in files):
        yield Fault(f"{where}: weight_map", "expected a file of this folder for each tensor", hint)
        return
    for file in sorted(files):
        if not (folder / file).is_file():
            yield Fault(f"{name}: {file}", "named in the index, but missing", hint)


def _read_json(path: Path, where: str, largest: int = LARGEST_CONFIG) -> dict[str, Any] | Fault:
    """The JSON object of a file, or why there is none."""
    hint = "take the file from the model's page on the hub"
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        return Fault(where, f"cannot be read: {(error.strerror or str(error)).lower()}", hint)
    if len(content) > largest:
        return Fault(where, f"expected at most {largest:,} bytes; found more", hint)
    return json_object(content, where, hint)


def json_object(content: bytes, where: str, hint: str) -> dict[str, Any] | Fault:
    """The JSON object that bytes are, or why they are none."""
    try:
        parsed = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        return Fault(where, f"not valid JSON: {reason}", hint)
    if not isinstance(parsed, dict):
        return Fault(where, f"expected a JSON object; found {shown(parsed)}", hint)
    return parsed


def _found(config: Mapping[str, Any], key: str) -> str:
    return shown(config[key]) if key in config else "nothing"


def shown(value: object) -> str:
    """A JSON value, no longer than a message bears."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
