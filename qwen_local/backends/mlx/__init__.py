"""The MLX engine: mlx-lm on an Apple GPU, or on any CPU.

Importing this package imports no framework: `cost` and `constants` are plain arithmetic.
"""
