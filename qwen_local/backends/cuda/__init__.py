"""The PyTorch engine: transformers and PEFT on an NVIDIA GPU, or on any CPU."""

from qwen_local.backends.cuda.quiet import import_bitsandbytes

import_bitsandbytes()
