"""A fast matrix product for MLX on a Linux CPU.

MLX's Linux CPU wheel brings the reference BLAS, which reaches some 4 GFLOP/s where the Intel MKL
inside PyTorch's CPU build reaches 300 (both measured on two AVX-512 cores, 256 x 192 x 512). Its
`cblas_sgemm` is a thin layer over the Fortran `sgemm_`, and `libtorch_cpu.so` exports MKL's: loaded
first, and with its symbols global, it is the one that the dynamic linker finds. Nothing here
concerns a Mac, where MLX computes on Metal and Accelerate.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path


def lend_fast_blas() -> bool:
    """Make PyTorch's BLAS visible to MLX; must run before `mlx.core` is first imported.

    Returns:
        Whether a faster BLAS is in place. False is slow, not wrong.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    library = Path(spec.origin).parent / "lib" / "libtorch_cpu.so"
    try:
        return hasattr(ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL), "sgemm_")
    except OSError:
        return False
