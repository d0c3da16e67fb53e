"""A fast matrix product for MLX on a Linux CPU, with results independent of memory addresses.

MLX's Linux CPU wheel brings the reference BLAS, which reaches some 4 GFLOP/s where the Intel MKL
inside PyTorch's CPU build reaches 300 (both measured on two AVX-512 cores, 256 x 192 x 512). Its
`cblas_sgemm` is a thin layer over the Fortran `sgemm_`, and `libtorch_cpu.so` exports MKL's: loaded
first, and with its symbols global, it is the one that the dynamic linker finds. Nothing here
concerns a Mac, where MLX computes on Metal and Accelerate.

By default MKL picks a kernel by the alignment of its operands, and kernels round differently.
PyTorch aligns every array to 64 bytes; MLX's allocator does not, so an address, and with it the
last bit of a product, depends on what the process allocated before. A resumed run has another
history than an unbroken one. `REPRODUCIBLE` makes MKL pick its kernels by shape alone.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

REPRODUCIBLE = "AUTO,STRICT"
"""Value of `MKL_CBWR`, MKL's "conditional numerical reproducibility": the instruction set that MKL
would use anyway, and where it supports STRICT, results that do not depend on alignment or on the
number of threads. A named instruction set would be slower on some machines and unknown on others:
MKL ignores a name that the CPU does not support, and every name on a CPU that is not Intel's."""


def lend_fast_blas() -> bool:
    """Make PyTorch's BLAS visible to MLX; must run before `mlx.core` is first imported.

    Sets the environment variable `MKL_CBWR` unless it is set; an empty value keeps MKL's default.
    MKL reads it at its first product in a process and not again, so it has no effect where PyTorch
    has already multiplied matrices.

    Returns:
        True if a faster BLAS is in place. False is slow, not wrong.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    library = Path(spec.origin).parent / "lib" / "libtorch_cpu.so"
    os.environ.setdefault("MKL_CBWR", REPRODUCIBLE)
    try:
        return hasattr(ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL), "sgemm_")
    except OSError:
        return False
