"""Imports bitsandbytes quietly, before anything else does.

Every module of the engine that imports transformers or PEFT imports this first: see `quiet.py`.
"""

from qwen_local.backends.cuda import before_torch  # noqa: F401  # first: PyTorch's settings

# isort: split
from qwen_local.backends.cuda.quiet import import_bitsandbytes

import_bitsandbytes()
