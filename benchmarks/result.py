"""What all results have in common: what they were measured on, and how they are written."""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.work import versions

if TYPE_CHECKING:
    from qwen_local.backends.machine import Machine

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "mlx", "mlx-lm")


def machine(
    device: str, packages: Sequence[str] = PACKAGES, here: Machine | None = None
) -> dict[str, Any]:
    """What it was measured on, in general words.

    Args:
        device: cpu or gpu.
        packages: whose versions are told, where they are installed.
        here: what is known of the machine already.
    """
    from qwen_local.backends.probe import probe

    here = here or probe()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(here.memory_bytes / 2**30),
        **({"gpu": here.gpu} if device == "gpu" else {}),
        "packages": versions(packages),
    }


def write(result: Mapping[str, Any], output: str | Path, *scratch: Path) -> None:
    """As JSON, in which no folder of the machine is named: results are handed around.

    Args:
        result: of what JSON holds, and of dataclasses.
        output: a file, which is there either whole or as it was before; `-` is stdout.
        scratch: folders that were made for this run.
    """
    # JSON has no NaN: it becomes null.
    plain = json.loads(json.dumps(result, default=asdict), parse_constant=lambda name: None)
    text = without_places(json.dumps(plain, indent=2) + "\n", *scratch)
    if str(output) == "-":
        print(text, end="")
        return
    file = Path(output)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def without_places(text: str, *scratch: Path) -> str:
    """A text, JSON or not, without this machine's folders.

    The working folder is written `.`, the home folder `~`, the temporary one `<tmp>`, and those of
    this run `<scratch>`.
    """
    named = [(folder, "<scratch>") for folder in scratch]
    named += [(Path(tempfile.gettempdir()), "<tmp>"), (Path.home(), "~"), (Path.cwd(), ".")]
    short: dict[str, str] = {}
    for folder, name in named:
        for path in {folder, folder.resolve()} - {Path(folder.anchor)}:
            # JSON may write a letter of its name as a number.
            short |= dict.fromkeys((str(path), json.dumps(str(path))[1:-1]), name)
    for place in sorted(short, key=len, reverse=True):  # one may lie in another
        text = re.sub(re.escape(place) + r"(?![\w-])", short[place], text)
    return text
