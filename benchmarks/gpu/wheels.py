"""Collect the wheels that a machine without a network lacks, for `WHEELS=DIR benchmarks/gpu/run`.

    python -m benchmarks.gpu.wheels DIR
    python -m benchmarks.gpu.wheels DIR --python 3.11 --also peft --also accelerate

For a Linux machine that has PyTorch and transformers and what these need. Versions are those of
constraints.txt. The wheel of bitsandbytes has a library for every CUDA, ROCm and XPU release; all
but one for CUDA and the one for the CPU are left out (`--no-strip` keeps them).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = (
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "ruamel.yaml"),
    *("datasets", "multiprocess", "dill", "gguf", "prompt_toolkit", "wcwidth", "bitsandbytes"),
)
PEERS = {"trl": None, "liger-kernel": "0.8.5", "cut-cross-entropy": "25.1.1"}
"""What this project is compared with; a version where constraints.txt has none."""
PLATFORMS = (
    *("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64"),
    *("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"),
)
MOST = 60 << 20
"""Bytes of all wheels together."""
LIBRARY = re.compile(r"bitsandbytes/libbitsandbytes_(?P<kind>\w+)\.so")


def main() -> None:
    """Download, strip, and list what is there."""
    given = arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    pinned = versions((ROOT / "constraints.txt").read_text("utf-8"))
    for name in (*NEEDED, *given.also):
        if not download(requirement(name, pinned), given.folder, given.python):
            sys.exit(f"{name} cannot be downloaded")
    for name, version in PEERS.items():
        one = requirement(name, pinned if version is None else {canonical(name): version})
        if not download(one, given.folder, given.python):
            print(f"without {name}: it cannot be downloaded", file=sys.stderr)
    if given.strip:
        for wheel in given.folder.glob("bitsandbytes-*.whl"):
            strip(wheel, keep=(f"cuda{given.cuda}", "cpu"))
    wheels = sorted(given.folder.glob("*.whl"))
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:6.2f} MiB  {wheel.name}")
    total = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{total / 2**20:6.2f} MiB in all")
    sys.exit(f"more than {MOST >> 20} MiB" if total > MOST else 0)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.wheels",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the wheels go")
    parser.add_argument("--python", default="3.12", help="of that machine; %(default)s")
    parser.add_argument("--cuda", default="130", help="bitsandbytes' library; %(default)s")
    parser.add_argument(
        "--also", action="append", default=[], metavar="PACKAGE", help="one more; repeatable"
    )
    parser.add_argument(
        "--strip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave other libraries out of bitsandbytes",
    )
    return parser.parse_args()


def versions(constraints: str) -> dict[str, str]:
    """Return the pinned versions by canonical name.

    >>> versions("# exact\\nruamel.yaml==0.19.1\\nmlx-metal==0.32.4; sys_platform == 'darwin'\\n")
    {'ruamel-yaml': '0.19.1', 'mlx-metal': '0.32.4'}
    """
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", constraints, re.M)
    return {canonical(name): version for name, version in found}


def canonical(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub("[-_.]+", "-", name).lower()


def requirement(name: str, pinned: dict[str, str]) -> str:
    """Return what pip is asked for.

    >>> requirement("pydantic_core", {"pydantic-core": "2.50.4"}), requirement("new", {})
    ('pydantic_core==2.50.4', 'new')
    """
    version = pinned.get(canonical(name))
    return name if version is None else f"{name}=={version}"


def download(wanted: str, folder: Path, python: str) -> bool:
    """Download one wheel for that Python, without what it needs; return whether there is one."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--dest", str(folder), "--python-version", python),
        *(word for name in PLATFORMS for word in ("--platform", name)),
        wanted,
    ]
    return subprocess.run(command, stdout=sys.stderr, check=False).returncode == 0


def strip(wheel: Path, *, keep: Sequence[str]) -> None:
    """Write a wheel of bitsandbytes anew, without the libraries whose kind is not kept.

    A wheel lists its files, with their hashes, in RECORD; the lines of the others go.

    Raises:
        SystemExit: a library that is to be kept is not there.
    """

    def stays(name: str) -> bool:
        library = LIBRARY.fullmatch(name)
        return library is None or library["kind"] in keep

    new = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as old:
        kinds = {found["kind"] for one in old.namelist() if (found := LIBRARY.fullmatch(one))}
        if lacking := sorted(set(keep) - kinds):
            sys.exit(f"{wheel.name} has no library for {' and '.join(lacking)}")
        with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as out:
            for item in old.infolist():
                if not stays(item.filename):
                    continue
                content = old.read(item)
                if item.filename.endswith(".dist-info/RECORD"):
                    lines = content.decode().splitlines(keepends=True)
                    content = "".join(one for one in lines if stays(one.split(",")[0])).encode()
                out.writestr(item, content, zipfile.ZIP_DEFLATED)
    new.replace(wheel)


if __name__ == "__main__":
    main()
