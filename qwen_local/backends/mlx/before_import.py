"""Prepares the process for `import mlx.core`; every entry module of the engine imports this first.

All settings are read once, when MLX's library or Metal's is loaded.
"""

import os
import sys

from qwen_local.backends.mlx.blas import lend_fast_blas

lend_fast_blas()
# Float32 means float32: on GPUs that have TF32 MLX would round the factors of a product to 10 bits.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
if sys.platform == "darwin":
    # Else macOS may end a process whose work delays the display ("Impacting Interactivity"):
    # https://github.com/ml-explore/mlx/issues/3267
    os.environ.setdefault("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1")
