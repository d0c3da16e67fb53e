"""Small habits with files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


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


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder `new` in the place of `target`; both lie beside each other."""
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    new.replace(target)
    shutil.rmtree(old, ignore_errors=True)
