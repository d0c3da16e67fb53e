"""Checks of a model folder before any engine sees it.

Both engines build a model from its config.json, and their libraries have run code that such a file
named (transformers: CVE-2026-4372 and CVE-2026-5241; mlx-lm: CVE-2026-5843). So a config is first
read here, as plain JSON. It is refused if it names code, a kernel or a file, if its family is not
supported, or if the two engines would read it differently. Therefore it must also contain every
number that one of them would fill with a default of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen_local.errors import Fault, ModelError
from qwen_local.models.families import FAMILIES
from qwen_local.models.families.family import Family

LARGEST_CONFIG = 1_000_000
"""In bytes. The longest published config.json has a few thousand."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of files that can run code when loaded; they are never loaded."""

CODE = ("auto_map", "model_file", "custom_pipelines")
"""Keys that name code to run."""
CHOICES = ("attn_implementation", "experts_implementation", "transformers_weights")
"""Keys that choose kernels or files; transformers obeys them in a config.json."""
LARGEST_SIZE = 2**31 - 1
LARGEST_ROPE_THETA = 1e12
"""Published models have up to 5e6."""
RMS_NORM_EPS = 1e-6
"""Default of transformers, used if config.json has none."""
FIXED: Mapping[str, object] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0,
    "use_sliding_window": False,
    "is_causal": True,
    "quantize_activations": False,
}
"""Values that both engines honor; at most one of them honors another value."""
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
"""Values that `mlx.core.quantize` accepts in its affine mode."""
BITSANDBYTES: Mapping[str, Mapping[str, object]] = {
    "load_in_4bit": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "uint8"},
    "load_in_8bit": {"llm_int8_has_fp16_weight": False},
}
"""The supported formats of bitsandbytes, each with its required settings."""
QUANTIZED_HINT = (
    "use the unquantized model, for example Qwen/Qwen3-0.6B, with model.quantization=4bit"
)
FULL_ATTENTION = "full_attention"
"""The only supported entry of `layer_types`."""


def engine_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a checked config.json that both engines are given.

    Any other key (a token id, a cache switch, ...) could make them differ or fail.
    """
    keys = FAMILIES[config["model_type"]].sizes
    rope = config.get("rope_parameters") or config
    theta = float(rope.get("rope_theta") or config["rope_theta"])
    return {
        **{key: config[key] for key in ("model_type", *keys, "tie_word_embeddings")},
        "rms_norm_eps": float(config.get("rms_norm_eps", RMS_NORM_EPS)),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }


def check_folder(folder: Path, name: str, *, weights: bool = True) -> dict[str, Any]:
    """Check a folder and return the content of its config.json.

    Args:
        folder: with config.json and, if `weights`, *.safetensors.
        name: name of the model in messages.
        weights: whether the weights must be present.

    Raises:
        ModelError: all faults together.
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
    """Describe a folder without config.json by what it holds instead."""
    if (folder / "adapter_config.json").exists():
        hint = "pass it as `adapter`, and its base model as `model`"
        return Fault(name, "expected a model; found an adapter", hint)
    hint = "pass a model as safetensors with its config.json, for example Qwen/Qwen3-0.6B"
    if any(folder.glob("*.gguf")):
        hint = "GGUF is for llama.cpp and Ollama; pass the run or folder that it was made from"
        return Fault(name, "expected a model as safetensors; found GGUF", hint)
    return Fault(name, "has no config.json", hint)


def config_faults(config: Mapping[str, Any], where: str) -> Iterator[Fault]:
    """Yield every reason to refuse a config.json.

    Args:
        config: its content.
        where: name of the file in messages.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):  # perhaps not a model at all: more faults would be noise
        yield _unknown_family(config, where)
        return
    family = FAMILIES.get(model_type)
    if family is None:
        yield _unknown_family(config, where)
    yield from _code_faults(config, where)
    if family is not None:
        yield from _quantization_faults(config, where)
        yield from _number_faults(config, where, family)
        yield from _variant_faults(config, where, family)


def _unknown_family(config: Mapping[str, Any], where: str) -> Fault:
    problem = f"expected {' or '.join(FAMILIES)}; found {_found(config, 'model_type')}"
    hint = "use a dense Qwen2.5, Qwen2.5-Coder or Qwen3 model"
    return Fault(f"{where}: model_type", problem, hint)


def _code_faults(config: Mapping[str, Any], where: str) -> Iterator[Fault]:
    for key, value in config.items():
        if value is None or key == "_name_or_path":
            continue
        if key in CODE:
            problem = f"names code to run: {shown(value)}"
            hint = "code that comes with a model is never run; use a model without it"
        elif key in CHOICES:
            problem = f"chooses what the engine loads: {shown(value)}"
            hint = f"remove {key} from a copy of the model"
        elif key.startswith("_"):
            problem = f"private key of a library, which may act on it: {shown(value)}"
            hint = f"remove {key} from a copy of the model"
        else:
            continue
        yield Fault(f"{where}: {key}", problem, hint)


def _quantization_faults(config: Mapping[str, Any], where: str) -> Iterator[Fault]:
    """Allow MLX's affine format, which mlx-lm writes under both keys, and two of bitsandbytes."""
    affine, theirs = config.get("quantization"), config.get("quantization_config")
    where_theirs = f"{where}: quantization_config"
    if affine is not None:
        yield from _affine_faults(affine, f"{where}: quantization")
        if theirs not in (None, affine):
            problem = f"expected the value of quantization; found {shown(theirs)}"
            yield Fault(where_theirs, problem, QUANTIZED_HINT)
    elif isinstance(theirs, dict) and theirs.get("quant_method") == "bitsandbytes":
        yield from _bitsandbytes_faults(theirs, where_theirs)
    elif theirs is not None and not list(_affine_faults(theirs, where)):
        problem = "missing: mlx-lm does not read quantization_config"
        hint = "copy quantization_config to quantization in a copy of the model"
        yield Fault(f"{where}: quantization", problem, hint)
    elif theirs is not None:
        problem = "expected no quantization, MLX's affine one, or bitsandbytes NF4 or LLM.int8()"
        yield Fault(where_theirs, f"{problem}; found {shown(theirs)}", QUANTIZED_HINT)


def _affine_faults(given: object, where: str) -> Iterator[Fault]:
    """Require settings of MLX's affine format that are the same for all layers."""
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
        problem = "expected one value of bits and one of group_size for all layers"
        yield Fault(where, f"{problem}; found {shown(given)}", QUANTIZED_HINT)


def _bitsandbytes_faults(theirs: Mapping[str, Any], where: str) -> Iterator[Fault]:
    """Require settings that the engine reads weights with.

    The files decide which layers are quantized, whatever `llm_int8_skip_modules` lists.
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


def _number_faults(config: Mapping[str, Any], where: str, family: Family) -> Iterator[Fault]:
    hint = "take config.json from the model's page on the hub"
    sizes = {key: config.get(key) for key in family.sizes}
    faulty = [k for k, v in sizes.items() if type(v) is not int or not 0 < v <= LARGEST_SIZE]
    for key in faulty:
        problem = f"expected a whole number above 0; found {_found(config, key)}"
        yield Fault(f"{where}: {key}", problem, hint)
    if not faulty:
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        if heads % kv_heads:
            problem = f"expected a multiple of num_key_value_heads ({kv_heads}); found {heads}"
            yield Fault(f"{where}: num_attention_heads", problem, hint)
        for key, problem in family.size_faults(config):
            yield Fault(f"{where}: {key}", problem, hint)
    epsilon = config.get("rms_norm_eps", RMS_NORM_EPS)
    if not _is_number(epsilon) or not 0 < epsilon < 1:
        problem = f"expected a number between 0 and 1; found {shown(epsilon)}"
        yield Fault(f"{where}: rms_norm_eps", problem, hint)
    if not isinstance(config.get("tie_word_embeddings"), bool):
        problem = f"expected true or false; found {_found(config, 'tie_word_embeddings')}"
        yield Fault(f"{where}: tie_word_embeddings", problem, hint)
    rope = config.get("rope_parameters")
    holders = [config] if rope is None else [config, rope] if isinstance(rope, dict) else []
    thetas = [holder["rope_theta"] for holder in holders if holder.get("rope_theta") is not None]
    if not thetas or not all(_is_number(t) and 0 < t <= LARGEST_ROPE_THETA for t in thetas):
        found = ", ".join(map(shown, thetas)) or "nothing"
        yield Fault(f"{where}: rope_theta", f"expected a number above 0; found {found}", hint)
    elif len(set(thetas)) > 1:
        problem = f"{thetas[0]} here, but {thetas[1]} in rope_parameters; the engines would differ"
        yield Fault(f"{where}: rope_theta", problem, hint)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _variant_faults(config: Mapping[str, Any], where: str, family: Family) -> Iterator[Fault]:
    """Refuse variants of the family that only one engine trains, or that they train differently."""
    hint = "use the model as the Qwen team published it"
    for key, value in FIXED.items():
        if config.get(key) not in (None, value):
            problem = f"expected {shown(value)}; found {shown(config[key])}"
            yield Fault(f"{where}: {key}", problem, hint)
    layers = config.get("layer_types")
    if layers is not None and (
        not isinstance(layers, list) or set(map(str, layers)) - {FULL_ATTENTION}
    ):
        problem = f"expected {FULL_ATTENTION} only; found {shown(layers)}"
        yield Fault(f"{where}: layer_types", problem, hint)
    if config.get("architectures") not in (None, [family.model_class]):
        problem = f'expected ["{family.model_class}"]; found {shown(config["architectures"])}'
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
            hint = "remove it from a copy of the model: only longer sequences need it"
            yield Fault(f"{where}: {key}", problem, hint)


def weight_faults(folder: Path, name: str) -> Iterator[Fault]:
    """Yield every reason why a folder's weights cannot be loaded.

    Args:
        folder: one *.safetensors, or several with an index, as published.
        name: name of the model in messages.
    """
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        found = f"only {', '.join(pickles)}, which could run code" if pickles else "no weights"
        hint = "use the model as safetensors, or save it in that format where it was made"
        yield Fault(name, f"expected *.safetensors; found {found}", hint)
        return
    if (folder / "hf_quant_config.json").exists():  # mlx-lm obeys it, transformers does not
        problem = "describes a quantization that only mlx-lm reads"
        yield Fault(f"{name}: hf_quant_config.json", problem, "use the unquantized model")
    if (folder / "adapter_config.json").exists():
        hint = "move adapter_config.json to another folder, or pass this one as `adapter`"
        yield Fault(name, "expected a model alone; found an adapter beside it", hint)
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
    """Return the JSON object of a file, or the reason why it cannot be read."""
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
    """Parse a JSON object, or return the reason why it is not one."""
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
    """Write a value as JSON, cut to a length that suits a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
