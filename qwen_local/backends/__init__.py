"""The engines, MLX and PyTorch, behind one small contract, and the choice between them."""

import os

# Both engines compute on OpenMP threads on a CPU. Threads that wait for work by spinning cost
# 14 times the step as soon as anything else runs on the machine; read when OpenMP is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
