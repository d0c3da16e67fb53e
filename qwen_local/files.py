"""Small habits with files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
"""Types of safetensors that numpy has, too."""


def write_json(path: Path, content: Any) -> None:
    """Readable JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, made_for: str) -> None:
    """A safetensors file that whoever may read the folder may read.

    `safetensors.numpy.save_file` would leave it readable by its owner alone.

    Args:
        path: the file.
        arrays: by name, each contiguous.
        made_for: `pt` or `mlx`, the `format` that loaders look for.
    """
    from safetensors.numpy import save

    path.write_bytes(save(dict(arrays), metadata={"format": made_for}))


def readable_by_all(path: Path) -> None:
    """Give a file or folder the rights that a new one has, where a library kept it to its owner."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as float32, by name.

    Read by hand from the bytes that the library has checked, because numpy has no bfloat16 and
    `safetensors.numpy` therefore cannot give it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file, or holds arrays that are not of floats.
    """
    import numpy as np
    from safetensors import SafetensorError, deserialize

    try:
        views = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]  # no stub for it
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    arrays = {}
    for name, view in views:
        if view["dtype"] == "BF16":  # the upper half of a float32
            flat = (np.frombuffer(view["data"], "<u2").astype("<u4") << 16).view("<f4")
        elif view["dtype"] in FLOATS:
            flat = np.frombuffer(view["data"], FLOATS[view["dtype"]]).astype(np.float32)
        else:
            raise ValueError(f"{name} is of type {view['dtype']}; expected floats")
        arrays[name] = flat.reshape(view["shape"])
    return arrays


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder `new` in the place of `target`; both lie beside each other."""
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    new.replace(target)
    shutil.rmtree(old, ignore_errors=True)
