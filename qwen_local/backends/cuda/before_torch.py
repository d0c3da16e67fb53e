"""Prepares the process for `import torch`: whatever imports it first imports this before.

PyTorch reads the variables when its library is loaded, or at the first allocation on a GPU. A value
that the user has set stays.
"""

import os

for name, value in {
    # Packed micro-batches differ in size at every step. Without this, a freed block serves no other
    # size, and memory runs out with gigabytes reserved. The second is the name before PyTorch 2.9.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    # Else an out-of-memory that is handled prints two warnings of the allocator.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}.items():
    os.environ.setdefault(name, value)
