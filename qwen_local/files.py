"""Small habits with files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Readable JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder `new` in the place of `target`; both lie beside each other."""
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    new.replace(target)
    shutil.rmtree(old, ignore_errors=True)
