"""Saving the adapter in both layouts, and loading it from either."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from qwen_local.adapters.lora import Adapter, lora_shapes
from qwen_local.adapters.mlx_layout import to_peft, write_mlx
from qwen_local.adapters.peft_layout import write_peft
from qwen_local.errors import Fault, ModelError
from qwen_local.files import read_arrays, replace_folder
from qwen_local.job import LoraSpec
from qwen_local.models.architecture import LINEARS, Architecture, block_path

PEFT_WEIGHTS, MLX_WEIGHTS = "adapter_model.safetensors", "adapters.safetensors"
MAX_RANK = 1024


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write `folder/peft` and `folder/mlx`, all at once: a reader sees the old or the new one."""
    new = folder.with_name(f".new-{folder.name}")
    shutil.rmtree(new, ignore_errors=True)
    for layout, write in (("peft", write_peft), ("mlx", write_mlx)):
        (new / layout).mkdir(parents=True)
        write(adapter, new / layout)
    replace_folder(new, folder)


def load_adapter(path: Path, architecture: Architecture) -> Adapter:
    """Read an adapter from a run folder, its `adapter/` folder, or a PEFT or mlx-lm folder.

    Args:
        path: the folder.
        architecture: of the model that it is to be put on.

    Raises:
        ModelError: nothing of the kind is there, or it does not fit the model; all faults at once.
    """
    folder = _find(path)
    config = _read_config(folder / "adapter_config.json")
    mlx = (folder / MLX_WEIGHTS).exists()
    weights = folder / (MLX_WEIGHTS if mlx else PEFT_WEIGHTS)
    lora = (
        _lora_of_mlx(config, architecture, folder)
        if mlx
        else _lora_of_peft(config, architecture, folder)
    )
    try:
        arrays = read_arrays(weights)
    except (OSError, ValueError) as error:
        raise ModelError.at(str(weights), f"not a readable safetensors file: {error}") from error
    if mlx:
        arrays = {to_peft(name): array.T for name, array in arrays.items()}
    _check_arrays(arrays, lora_shapes(architecture, lora), weights)
    return Adapter(
        base=str(config.get("model" if mlx else "base_model_name_or_path") or ""),
        lora=lora,
        layers=architecture.layers,
        arrays={name: np.ascontiguousarray(array) for name, array in arrays.items()},
    )


def _find(path: Path) -> Path:
    """The folder that holds the adapter's two files."""
    if not path.is_dir():
        raise ModelError.at(
            f"--adapter {path}", "no such folder", "name a run folder, or an adapter's folder"
        )
    for folder in (path, path / "peft", path / "adapter" / "peft", path / "mlx"):
        if (folder / PEFT_WEIGHTS).exists() or (folder / MLX_WEIGHTS).exists():
            return folder
    pickled = path / "adapter_model.bin"
    if pickled.exists():
        raise ModelError.at(
            str(pickled),
            "a pickle file, which can run code when it is read",
            "load it where it was made and save it again with safe_serialization=True",
        )
    raise ModelError.at(
        f"--adapter {path}",
        f"found neither {PEFT_WEIGHTS} (PEFT) nor {MLX_WEIGHTS} (mlx-lm)",
        "name a run folder, or the folder that holds one of these files",
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ModelError.at(str(path), f"not readable as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError.at(str(path), f"expected an object; found {type(config).__name__}")
    return config


def _lora_of_peft(config: dict[str, Any], architecture: Architecture, folder: Path) -> LoraSpec:
    """The LoRA settings of PEFT's adapter_config.json."""
    where, faults = f"{folder / 'adapter_config.json'}", []
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if config.get("peft_type") != "LORA":
        faults.append(_expected(where, "peft_type", "LORA", config.get("peft_type")))
    for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "use_dora"):
        if config.get(key):
            faults.append(Fault(f"{where}: {key}", "this adapter cannot be loaded with it set"))
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not set(map(str, targets)) <= set(LINEARS):
        faults.append(_expected(where, "target_modules", f"names out of {_LINEARS}", targets))
    layers: Any = config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers or []
    total = architecture.layers
    if layers and set(map(str, layers)) != set(map(str, range(total - len(layers), total))):
        faults.append(
            _expected(where, "layers_to_transform", f"the last blocks of {total}", layers)
        )
    dropout = config.get("lora_dropout") or 0.0
    faults += _number_faults(where, {"r": rank}, {"lora_alpha": alpha}, {"lora_dropout": dropout})
    if faults:
        raise ModelError(faults)
    return LoraSpec(
        rank=int(str(rank)),
        alpha=float(str(alpha)),
        dropout=float(dropout),
        targets=_ordered(set(map(str, targets or []))),
        layers=len(layers) if layers else "all",
        rslora=bool(config.get("use_rslora")),
    )


def _lora_of_mlx(config: dict[str, Any], architecture: Architecture, folder: Path) -> LoraSpec:
    """The LoRA settings of mlx-lm's adapter_config.json."""
    where, faults = f"{folder / 'adapter_config.json'}", []
    if config.get("fine_tune_type") != "lora":
        faults.append(_expected(where, "fine_tune_type", "lora", config.get("fine_tune_type")))
    parameters = config.get("lora_parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    rank, scale = parameters.get("rank"), parameters.get("scale")
    paths = {block_path(name): name for name in LINEARS}
    keys = parameters.get("keys", list(paths))  # mlx-lm: no keys means every linear layer
    if not isinstance(keys, list) or not set(map(str, keys)) <= paths.keys():
        faults.append(_expected(where, "lora_parameters.keys", f"paths out of {list(paths)}", keys))
    count = config.get("num_layers")
    if not isinstance(count, int):
        faults.append(_expected(where, "num_layers", "an integer", count))
    dropout = parameters.get("dropout") or 0.0
    faults += _number_faults(
        where,
        {"lora_parameters.rank": rank},
        {"lora_parameters.scale": scale},
        {"lora_parameters.dropout": dropout},
    )
    if faults:
        raise ModelError(faults)
    every = not 0 < int(str(count)) < architecture.layers  # mlx-lm: 0 and -1 mean all
    return LoraSpec(
        rank=int(str(rank)),
        alpha=float(str(scale)) * int(str(rank)),
        dropout=float(dropout),
        targets=_ordered({paths[key] for key in map(str, keys)}),
        layers="all" if every else int(str(count)),
    )


_LINEARS = ", ".join(LINEARS)


def _ordered(names: set[str]) -> tuple[str, ...]:
    return tuple(name for name in LINEARS if name in names)


def _expected(where: str, key: str, wanted: str, found: object) -> Fault:
    return Fault(f"{where}: {key}", f"expected {wanted}; found {found!r}")


def _number_faults(
    where: str, ranks: dict[str, Any], scales: dict[str, Any], dropouts: dict[str, Any]
) -> list[Fault]:
    faults = []
    for key, value in ranks.items():
        if type(value) is not int or not 1 <= value <= MAX_RANK:
            faults.append(_expected(where, key, f"an integer from 1 to {MAX_RANK}", value))
    for key, value in scales.items():
        if type(value) not in (int, float) or not np.isfinite(value) or value <= 0:
            faults.append(_expected(where, key, "a positive number", value))
    for key, value in dropouts.items():
        if type(value) not in (int, float) or not 0 <= value < 1:
            faults.append(_expected(where, key, "a number from 0 to 1", value))
    return faults


def _check_arrays(
    arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, int]], path: Path
) -> None:
    """Every array that the settings ask for, in its shape, finite, and no other."""
    faults = []
    for name in sorted(shapes.keys() | arrays.keys()):
        if name not in arrays:
            faults.append(Fault(f"{path}: {name}", "missing"))
        elif name not in shapes:
            faults.append(Fault(f"{path}: {name}", "not a matrix of this model's adapter"))
        elif arrays[name].shape != shapes[name]:
            faults.append(_expected(str(path), name, f"shape {shapes[name]}", arrays[name].shape))
        elif not np.isfinite(arrays[name]).all():
            faults.append(Fault(f"{path}: {name}", "holds numbers that are not finite"))
    if faults:
        raise ModelError(faults)
