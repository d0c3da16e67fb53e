"""Wheels for a machine without a network: which, and what is left of bitsandbytes."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import wheels
from benchmarks.metal import __main__ as metal
from benchmarks.parts import Part

PACKAGE = "bitsandbytes"
FILES = {
    f"{PACKAGE}/__init__.py": "VERSION = 1\n",
    f"{PACKAGE}/libbitsandbytes_cpu.so": "cpu",
    f"{PACKAGE}/libbitsandbytes_cuda126.so": "older",
    f"{PACKAGE}/libbitsandbytes_cuda130.so": "cuda",
    f"{PACKAGE}/libbitsandbytes_rocm70.so": "rocm",
    f"{PACKAGE}-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: bitsandbytes\nVersion: 1\n",
    f"{PACKAGE}-1.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    file = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    record = f"{PACKAGE}-1.dist-info/RECORD"
    with zipfile.ZipFile(file, "w") as out:
        for name, text in FILES.items():
            out.writestr(name, text)
        out.writestr(record, "".join(f"{name},,\n" for name in (*FILES, record)))
    return file


def test_a_stripped_wheel_has_one_library_for_the_card_and_one_for_the_cpu(wheel: Path) -> None:
    wheels.strip(wheel, keep=("cuda130", "cpu"))
    with zipfile.ZipFile(wheel) as found:
        names = found.namelist()
        record = found.read(f"{PACKAGE}-1.dist-info/RECORD").decode()
        assert found.read(f"{PACKAGE}/libbitsandbytes_cuda130.so") == b"cuda"
    gone = {f"{PACKAGE}/libbitsandbytes_{kind}.so" for kind in ("cuda126", "rocm70")}
    assert set(names) == {*FILES, f"{PACKAGE}-1.dist-info/RECORD"} - gone
    assert [line.split(",")[0] for line in record.splitlines()] == names
    assert list(wheel.parent.iterdir()) == [wheel]


@pytest.mark.slow
def test_a_stripped_wheel_installs(wheel: Path, tmp_path: Path) -> None:
    wheels.strip(wheel, keep=("cuda130", "cpu"))
    target = tmp_path / "installed"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", "--no-deps", "--target", str(target), str(wheel)),
        ],
        check=True,
    )
    libraries = sorted(file.name for file in target.rglob("*.so"))
    assert libraries == ["libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so"]


def test_a_wheel_without_the_library_that_is_asked_for_stays_as_it_is(wheel: Path) -> None:
    before = wheel.read_bytes()
    with pytest.raises(SystemExit, match="has no library for cuda999"):
        wheels.strip(wheel, keep=("cuda999", "cpu"))
    assert wheel.read_bytes() == before


def test_every_package_that_is_needed_has_a_pinned_version() -> None:
    pinned = wheels.versions((wheels.ROOT / "constraints.txt").read_text("utf-8"))
    for name in wheels.NEEDED:
        assert "==" in wheels.requirement(name, pinned)
    for name, version in wheels.PEERS.items():
        assert (wheels.canonical(name) in pinned) is (version is None)


@pytest.mark.parametrize(("parts", "last"), [(gpu.PARTS, "heads"), (metal.PARTS, "peers")])
def test_the_parts_of_a_first_call_fit_into_nine_minutes(
    parts: tuple[Part, ...], last: str
) -> None:
    names = [part.name for part in parts]
    first = parts[: names.index(last) + 1]
    assert sum(part.seconds for part in first) <= gpu.BUDGET == metal.BUDGET <= 540
    assert len(set(names)) == len(names)


def test_the_parts_of_a_second_call_fit_into_five_minutes() -> None:
    chosen = ("environment", "memory", "answer speed", "peers 1.7B")
    seconds = {part.name: part.seconds for part in gpu.PARTS}
    assert sum(seconds[name] for name in chosen) <= 300
