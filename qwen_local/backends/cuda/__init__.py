"""The PyTorch engine: transformers and PEFT on an NVIDIA GPU, or on any CPU.

Importing this package imports no framework: `cost` and `constants` are plain arithmetic.
"""
