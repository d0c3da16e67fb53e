"""The instrument of the kill matrix: it sees every operation, and only those below its folder."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import POWER_CUT, Faults, PowerCut

ROOT = Path(__file__).parents[2]


def seen(faults: Faults) -> list[tuple[str, ...]]:
    return [
        (o.name, o.path) if o.source is None else (o.name, o.source, o.path)
        for o in faults.operations
    ]


def test_operations_of_every_way_to_write_are_seen(tmp_path: Path) -> None:
    with Faults(root=tmp_path / "run") as faults:
        (tmp_path / "run" / "a").mkdir(parents=True)
        (tmp_path / "run" / "a" / "text").write_text("text", "utf-8")
        with (tmp_path / "run" / "bytes").open("ab", buffering=0) as file:
            file.write(b"bytes")
            os.fsync(file.fileno())
            file.truncate(2)
        number = os.open(tmp_path / "run" / "plain", os.O_WRONLY | os.O_CREAT)
        os.write(number, b"plain")
        os.close(number)
        (tmp_path / "run" / "plain").replace(tmp_path / "run" / "a" / "moved")
        assert (tmp_path / "run" / "bytes").read_bytes() == b"by"
    assert seen(faults) == [
        ("mkdir", "a"),
        ("mkdir", "."),
        ("mkdir", "a"),
        ("open", "a/text"),
        ("write", "a/text"),
        ("open", "bytes"),
        ("write", "bytes"),
        ("fsync", "bytes"),
        ("ftruncate", "bytes"),
        ("open", "plain"),
        ("write", "plain"),
        ("close", "plain"),
        ("replace", "plain", "a/moved"),
        ("read", "bytes"),
    ]


def test_removing_a_folder_is_seen_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "run" / "a").mkdir(parents=True)
    (tmp_path / "run" / "a" / "file").write_bytes(b"")
    with Faults(root=tmp_path / "run") as faults:
        shutil.rmtree(tmp_path / "run" / "a")
    removals = [operation for operation in seen(faults) if operation[0] in ("unlink", "rmdir")]
    assert removals == [("unlink", "a/file"), ("rmdir", "a")]


def test_what_lies_elsewhere_is_not_seen(tmp_path: Path) -> None:
    with Faults(root=tmp_path / "run") as faults:
        (tmp_path / "run-2").mkdir()
        (tmp_path / "run-2" / "file").write_bytes(b"bytes")
        number = os.open(tmp_path / "run-2" / "file", os.O_RDONLY)
        os.fsync(number)
        os.close(number)
        shutil.rmtree(tmp_path / "run-2")
    assert faults.operations == []


def test_everything_is_as_before_afterwards(tmp_path: Path) -> None:
    before = (open, io.open, os.open, os.write, os.replace, os.unlink)
    with Faults(root=tmp_path), pytest.raises(ZeroDivisionError):
        1 / 0  # noqa: B018
    assert (open, io.open, os.open, os.write, os.replace, os.unlink) == before


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_one_operation_fails_and_only_once(tmp_path: Path, fault: str) -> None:
    with Faults(root=tmp_path, at=1, fault=fault) as faults:
        with pytest.raises(OSError, match=os.strerror(getattr(errno, fault))):
            (tmp_path / "file").write_bytes(b"bytes")
        (tmp_path / "file").write_bytes(b"bytes")
    assert seen(faults) == [("open", "file"), ("write", "file")] * 2
    assert (tmp_path / "file").read_bytes() == b"bytes"


def test_a_short_write_is_gone_on_with(tmp_path: Path) -> None:
    with Faults(root=tmp_path, at=1, fault="short write") as faults:
        (tmp_path / "file").write_bytes(b"bytes")
    assert seen(faults) == [("open", "file"), ("write", "file"), ("write", "file")]
    assert (tmp_path / "file").read_bytes() == b"bytes"


@pytest.mark.parametrize(
    ("fault", "left"), [("kill before", b""), ("torn write", b"byt"), ("kill after", b"bytes")]
)
def test_a_death_leaves_what_was_written(tmp_path: Path, fault: str, left: bytes) -> None:
    script = (
        "from pathlib import Path\n"
        "from benchmarks.faults import Faults\n"
        f"with Faults(root={str(tmp_path)!r}, at=1, fault={fault!r}):\n"
        f"    Path({str(tmp_path / 'file')!r}).write_bytes(b'bytes')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert ended.returncode == -9
    assert (tmp_path / "file").read_bytes() == left


def test_after_a_power_cut_nothing_is_done_any_more(tmp_path: Path) -> None:
    def clean_up() -> None:
        try:
            (tmp_path / "file").write_bytes(b"bytes")
        finally:
            (tmp_path / "file").unlink()

    with Faults(root=tmp_path, at=1, fault=POWER_CUT), pytest.raises(PowerCut):
        clean_up()
    assert (tmp_path / "file").read_bytes() == b""
