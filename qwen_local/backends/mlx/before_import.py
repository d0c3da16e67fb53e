"""Prepares the process for `import mlx.core`; every entry module of the engine imports this first.

Both settings are read once, when MLX's library is loaded.
"""

import os

from qwen_local.backends.mlx.blas import lend_fast_blas

lend_fast_blas()
# Float32 means float32: on GPUs that have TF32 MLX would round the factors of a product to 10 bits.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
