"""Saving an adapter in both layouts, and loading it from either."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qwen_local.adapters.configs import (
    MERGE,
    Settings,
    read_origin,
    settings_of_mlx,
    settings_of_peft,
)
from qwen_local.adapters.lora import Adapter, Origin, all_places, array_shapes, places_of
from qwen_local.adapters.mlx_layout import to_peft, write_mlx
from qwen_local.adapters.peft_layout import write_peft
from qwen_local.errors import Fault, ModelError
from qwen_local.files import (
    array_header,
    expanded,
    read_arrays,
    replace_folder,
    sync_tree,
    write_json,
)
from qwen_local.models.architecture import Architecture, Shape
from qwen_local.models.source import ModelSource, find_model

log = logging.getLogger("qwen_local")

T = TypeVar("T")

PEFT_WEIGHTS, MLX_WEIGHTS = "adapter_model.safetensors", "adapters.safetensors"
LARGEST_CONFIG = 10_000_000
"""In bytes; those that PEFT writes have a few thousand."""
ORIGIN = "qwen_local.json"
"""File beside them with the `Origin`, for which neither layout has a place."""


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write `folder/peft` and `folder/mlx`; replace older ones only when both are complete.

    A reader may find neither for an instant.
    """
    new = folder.with_name(f".new-{folder.name}")
    shutil.rmtree(new, ignore_errors=True)
    try:
        for layout, write in (("peft", write_peft), ("mlx", write_mlx)):
            (new / layout).mkdir(parents=True)
            write(adapter, new / layout)
            write_json(new / layout / ORIGIN, asdict(adapter.origin))
        sync_tree(new)
        replace_folder(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def named_base(path: Path) -> tuple[str, Origin]:
    """Return an adapter's base model, "" if it names none, and its origin.

    Raises:
        ModelError: there is no adapter, or its settings cannot be read.
    """
    folder = folder_of(path)
    config = _read_config(folder / "adapter_config.json")
    key = "model" if (folder / MLX_WEIGHTS).exists() else "base_model_name_or_path"
    return str(config.get(key) or ""), origin_in(folder)


def origin_in(folder: Path) -> Origin:
    """Read the origin in the folder of an adapter or of a merged model.

    Raises:
        ModelError: it cannot be read.
    """
    file = folder / ORIGIN
    return read_origin(_read_config(file), str(file)) if file.exists() else Origin()


def base_of(model: str | None, revision: str | None, adapter: Path | None) -> ModelSource:
    """Return the requested model, or else the adapter's base model at the recorded commit.

    Raises:
        ModelError: neither names one.
    """
    if adapter is None:
        if model is None:
            problem = "expected a model, or an `adapter` that names one; found neither"
            raise ModelError.at("model", problem, "for example `model=Qwen/Qwen3-0.6B`")
        return find_model(model, revision)
    base, origin = named_base(adapter)
    if not (model or base):
        problem = f"{adapter} does not name its base model"
        raise ModelError.at("model", problem, "pass `model`")
    if model not in (None, base):
        return find_model(str(model), revision)
    try:
        source = find_model(base, revision)
    except ModelError as error:
        named = f"adapter {adapter}: its base model {base}"
        hint = "pass `model` with its current location"
        raise ModelError([Fault(named, f.problem, hint) for f in error.faults]) from None
    ours = origin != Origin()
    if source.kind == "hub" and ours and origin.commit is None:  # else it could be anyone's model
        problem = "was a local folder in training, which does not exist here"
        hint = "pass `model` with its current location"
        raise ModelError.at(f"adapter {adapter}: its base model {base}", problem, hint)
    if source.kind == "hub" and revision is None:
        source = replace(source, revision=origin.commit)
    if model is None:
        at = f" at {source.revision}" if source.revision else ""
        log.info("model: %s%s, the adapter's base model", base, at)
    return source


def load_adapter(path: Path, architecture: Architecture) -> Adapter:
    """Read an adapter from a run folder, its `adapter/` folder, or a PEFT or mlx-lm folder.

    The header of the file is checked against the model before its arrays are read.

    Args:
        path: the folder.
        architecture: of the model that the adapter is applied to.

    Raises:
        ModelError: there is no adapter, or it does not fit the model; all faults together.
    """
    folder = folder_of(path)
    where = folder / "adapter_config.json"
    config = _read_config(where)
    mlx = (folder / MLX_WEIGHTS).exists()
    weights = folder / (MLX_WEIGHTS if mlx else PEFT_WEIGHTS)
    read_settings = settings_of_mlx if mlx else settings_of_peft
    settings = read_settings(config, architecture.blocks, str(where))
    base, origin = named_base(path)
    shapes = _readable(array_header, weights)
    if mlx:
        if unknown := [name for name in shapes if to_peft(name) == name]:
            problem = "not a name of an adapter array in mlx-lm"
            raise ModelError([Fault(f"{weights}: {name}", problem) for name in unknown])
        shapes = {to_peft(name): shape[::-1] for name, shape in shapes.items()}
    _check_shapes(shapes, settings, architecture, weights, path, base)
    if not (folder / ORIGIN).exists():  # not written here
        _check_orientation(shapes, weights)
    arrays = _readable(read_arrays, weights)
    if mlx:
        arrays = {to_peft(name): array.T for name, array in arrays.items()}
    if faults := list(nonfinite_faults(arrays, weights)):
        raise ModelError(faults)
    return Adapter(
        base=base,
        lora=settings.lora(places_of(arrays, architecture.blocks), architecture.blocks),
        blocks=architecture.blocks,
        arrays={name: np.ascontiguousarray(array) for name, array in arrays.items()},
        origin=origin,
    )


def _readable(read: Callable[[Path], T], weights: Path) -> T:
    try:
        return read(weights)
    except (OSError, ValueError) as error:
        raise ModelError.at(str(weights), f"not a readable safetensors file: {error}") from error


def _check_shapes(
    shapes: Mapping[str, Shape],
    settings: Settings,
    architecture: Architecture,
    weights: Path,
    path: Path,
    base: str,
) -> None:
    """Refuse arrays that do not match this model and these settings."""
    ranks = {shape[0] for name, shape in shapes.items() if ".lora_A." in name and len(shape) == 2}
    if len(ranks) == 1 and ranks != {settings.rank}:
        where = weights.with_name("adapter_config.json")
        problem = f"rank is {settings.rank}, but the matrices beside it have {ranks.pop()}"
        raise ModelError.at(str(where), problem, "copy both files from the same folder")
    found = set(places_of(shapes, architecture.blocks))
    allowed = set(all_places(architecture.blocks)) if settings.places is None else settings.places
    needed = settings.places if settings.all_required and settings.places is not None else set()
    places = sorted((found & allowed) | needed)
    expected = array_shapes(architecture, places, settings.rank, dora=settings.dora)
    faults = [*shape_faults(shapes, expected, weights)]
    if not found and not faults:
        faults = [Fault(str(weights), "holds no arrays")]
    if faults:
        made_for = f"made for {base}" if base else "it does not name its base model"
        problem = f"{made_for}; its matrices do not fit this model"
        raise ModelError([Fault(f"adapter {path}", problem), *faults])


def _check_orientation(shapes: Mapping[str, Shape], weights: Path) -> None:
    """Refuse matrices that are all square, because they could be transposed.

    A single one that is not square shows the orientation of all.
    """
    if all(len(set(shape)) == 1 for shape in shapes.values() if len(shape) == 2):
        raise ModelError.at(
            str(weights),
            "holds square matrices only: nothing shows whether they are transposed",
            "merge it where it was made and use the merged model",
        )


def folder_of(path: Path) -> Path:
    """Find the folder that holds an adapter's two files.

    Args:
        path: a run, its `adapter/` folder, or a PEFT or mlx-lm folder.

    Raises:
        ModelError: there is none.
    """
    path = expanded(path)
    if not os.path.isdir(path):  # noqa: PTH112 - Path raises for a name that is too long
        raise ModelError.at(
            f"adapter {path}", "no such folder", "pass a run folder or an adapter folder"
        )
    for folder in (path, path / "peft", path / "adapter" / "peft", path / "mlx"):
        found = [name for name in (PEFT_WEIGHTS, MLX_WEIGHTS) if (folder / name).exists()]
        if len(found) > 1:
            problem = f"holds two adapters, {found[0]} and {found[1]}, but one adapter_config.json"
            raise ModelError.at(str(folder), problem, "move one of them to another folder")
        if found:
            return folder
    pickled = path / "adapter_model.bin"
    if pickled.exists():
        raise ModelError.at(
            str(pickled),
            "a pickle file, which can run code when it is loaded",
            "load it where it was made and save it again with safe_serialization=True",
        )
    if (path / "config.json").exists():
        problem = "expected an adapter; found a model"
        hint = "pass it as `model`, or pass the run or adapter that it was made from"
        raise ModelError.at(f"adapter {path}", problem, hint)
    inner = [file.parent for name in (PEFT_WEIGHTS, MLX_WEIGHTS) for file in path.glob(f"*/{name}")]
    raise ModelError.at(
        f"adapter {path}",
        f"found neither {PEFT_WEIGHTS} (PEFT) nor {MLX_WEIGHTS} (mlx-lm)",
        f"there is one in {inner[0]}"
        if inner
        else "pass a run folder, or the folder that holds one of these files",
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_CONFIG + 1)
        config = json.loads(content.decode()) if len(content) <= LARGEST_CONFIG else None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError.at(str(path), f"not readable as JSON: {error}") from error
    if len(content) > LARGEST_CONFIG:
        raise ModelError.at(str(path), f"has more than {LARGEST_CONFIG:,} bytes")
    if not isinstance(config, dict):
        raise ModelError.at(str(path), f"expected an object; found {type(config).__name__}")
    return config


def shape_faults(
    shapes: Mapping[str, Shape], expected: Mapping[str, Shape], path: Path
) -> Iterator[Fault]:
    """Yield arrays of a file that are missing, unknown or of the wrong shape."""
    for name in sorted(expected.keys() | shapes.keys()):
        if name not in shapes:
            yield Fault(f"{path}: {name}", "missing")
        elif name not in expected:
            yield Fault(f"{path}: {name}", "not an adapter matrix of this model", MERGE)
        elif shapes[name] != expected[name]:
            problem = f"expected shape {expected[name]}; found {shapes[name]}"
            yield Fault(f"{path}: {name}", problem)


def nonfinite_faults(arrays: Mapping[str, np.ndarray], path: Path) -> Iterator[Fault]:
    """Yield arrays of a file that hold infinities or NaN."""
    for name, array in sorted(arrays.items()):
        if not np.isfinite(array).all():
            yield Fault(f"{path}: {name}", "holds values that are not finite")
