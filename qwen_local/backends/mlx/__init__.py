"""The MLX engine: mlx-lm on an Apple GPU, or on any CPU."""

from qwen_local.backends.mlx.blas import lend_fast_blas

lend_fast_blas()
