"""Promise 7: nothing runs that the user did not write; bitsandbytes would fetch kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

OURS = (
    *(
        "model: ",
        "backend: ",
        "dtype: ",
        "memory: ",
        "advice: ",
        "trainable: ",
        "data: ",
        "steps: ",
    ),
    *("time: ", "planned ", "supervised: "),
    *("step ", "done in ", "adapter: ", "next: "),
)
"""How each line begins that `train` says."""


def test_the_torch_engine_lets_bitsandbytes_fetch_no_kernel_and_say_nothing(tmp_path: Path) -> None:
    """With a `kernels` package at hand (on a CPU with AVX512-BF16, bitsandbytes 0.50 asks it)."""
    fetched = tmp_path / "fetched"
    (tmp_path / "kernels.py").write_text(
        f"def get_kernel(*args, **kwargs):\n    open({str(fetched)!r}, 'w').close()\n"
    )
    program = (
        "import qwen_local.backends.cuda.engine, sys; "
        "assert 'bitsandbytes' in sys.modules; import kernels; print(kernels.__name__)"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not fetched.exists()
    assert (ran.stdout, ran.stderr) == ("kernels\n", "")


def test_a_qlora_run_asks_no_hub_and_brings_no_warning(tmp_path: Path) -> None:
    """As a newcomer runs it, with every door to a network closed and warnings let through."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def closed(*args, **kwargs):\n"
        "    open('asked', 'w').close()\n"
        "    raise OSError('no network')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = closed\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHONWARN"))}
    for quantization in ("4bit", "8bit"):
        command = [
            *(sys.executable, "-m", "qwen_local", "train", "--backend", "cuda", "--device", "cpu"),
            *("--quantization", quantization, "--steps", "2", "--output", quantization),
        ]
        ran = subprocess.run(
            command,
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout == f"{quantization}/adapter\n"
        assert [line for line in ran.stderr.splitlines() if not line.startswith(OURS)] == []
    assert not (tmp_path / "asked").exists()
