"""Import of bitsandbytes that fetches no code and prints nothing.

On a CPU with AVX512-BF16 bitsandbytes 0.50 loads compiled kernels from the hub while it is imported
(PEFT imports it wherever it is installed), and prints a warning if the package for that is missing.
Nothing may run here that the user did not write, so the attempt is made to fail quietly.
"""

from __future__ import annotations

import importlib.util
import logging
import sys


def import_bitsandbytes() -> None:
    """Import bitsandbytes, if it is installed, without its kernels from the hub."""
    if "bitsandbytes" in sys.modules or importlib.util.find_spec("bitsandbytes") is None:
        return
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    known, level = sys.modules.get("kernels"), logger.level
    sys.modules["kernels"] = None  # type: ignore[assignment]  # makes `import kernels` fail
    logger.setLevel(logging.ERROR)
    try:
        importlib.import_module("bitsandbytes")
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        if known is not None:
            sys.modules["kernels"] = known
