"""qwen-local: one LoRA job for Qwen models, two engines (MLX and PyTorch), one adapter."""

__version__ = "0.1.0"
