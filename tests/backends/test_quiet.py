"""Promise 7: nothing runs that the user did not write; bitsandbytes would fetch kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


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
