"""One process at a time works on a run."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qwen_local.errors import RunBusyError
from qwen_local.runs.directory import check_free
from qwen_local.runs.lock import locked


def test_a_run_is_held_by_one_process_which_is_named(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunBusyError) as busy:
        check_free(tmp_path)
    owner = json.loads((tmp_path / ".lock").read_text())
    assert owner["pid"] == os.getpid()
    assert busy.value.exit_code == 3
    assert str(busy.value) == (
        f"{tmp_path}: the run is in use by process {os.getpid()} on {owner['host']}, "
        f"since {owner['since']}\n\nhint: wait for it, or stop it first"
    )
    check_free(tmp_path)  # a lock that nobody holds is no content


def test_a_look_at_the_lock_keeps_nobody_out(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    with (tmp_path / ".lock").open("rb") as first:
        fcntl.flock(first, fcntl.LOCK_SH)
        check_free(tmp_path)  # two looks at once
        threading.Timer(0.1, lambda: fcntl.flock(first, fcntl.LOCK_UN)).start()
        with locked(tmp_path):
            pass


def test_the_lock_of_a_process_that_died_is_taken_over(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from qwen_local.runs.lock import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert (died.returncode, (tmp_path / ".lock").exists()) == (-9, True)
    with locked(tmp_path):
        pass
