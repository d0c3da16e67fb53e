"""The engines, MLX and PyTorch, behind one small contract; and the choice between them."""

import os

# Both engines compute on OpenMP threads on a CPU. Threads that spin while they wait make a
# step 14 times as long as soon as anything else runs; the setting is read when OpenMP loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
