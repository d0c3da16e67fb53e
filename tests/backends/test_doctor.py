"""What `doctor` says of machines that are not here; whole texts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_local.backends.doctor import diagnose
from qwen_local.backends.hub import Hub
from qwen_local.backends.machine import Card, Disk, Machine

GIB = 2**30
CACHE = "/home/me/.cache/huggingface/hub"

RTX_3090 = Card(name="NVIDIA GeForce RTX 3090", memory_bytes=24 * GIB, capability=(8, 6))
A800 = Card(name="NVIDIA A800 80GB PCIe", memory_bytes=80 * GIB, capability=(8, 0))
T4 = Card(name="Tesla T4", memory_bytes=15 * GIB, capability=(7, 5))
GTX_980 = Card(name="NVIDIA GeForce GTX 980", memory_bytes=4 * GIB, capability=(5, 2))
V100 = Card(name="Tesla V100-SXM2-16GB", memory_bytes=16 * GIB, capability=(7, 0))

TRANSFORMERS = {"transformers": "5.23.0"}
PYTORCH = {"torch": "2.13.0", "peft": "0.21.2"} | TRANSFORMERS
QLORA = PYTORCH | {"bitsandbytes": "0.50.2"}
MLX = {"mlx": "0.32.4", "mlx-lm": "0.32.2"} | TRANSFORMERS

LINUX = Machine(
    system="Linux",
    processor="x86_64",
    distribution="Ubuntu 24.04.2 LTS",
    cpu="AMD Ryzen 9 5900X 12-Core Processor",
    python="3.12.3",
    packages=QLORA,
    mlx=None,
    metal=False,
    torch="2.13.0",
    torch_cuda="13.0",
    architectures=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"),
    cuda=False,
    bfloat16=False,
    nvidia=False,
    driver=None,
    memory_bytes=64 * GIB,
    gpu_bytes=0,
    disks=(
        Disk(purpose="working folder", path="/home/me/qwen", free_bytes=412 * GIB),
        Disk(purpose="hub cache", path=CACHE, free_bytes=412 * GIB),
    ),
)
BOTH_ENGINES = replace(
    LINUX, torch="2.13.0+cpu", torch_cuda=None, mlx="0.32.4", packages=QLORA | MLX
)
HANGING = replace(BOTH_ENGINES, driver_error="nvidia-smi does not answer within 10 seconds")
FULL = replace(
    BOTH_ENGINES,
    disks=(
        Disk(purpose="working folder", path="/home/me/qwen", free_bytes=1 * GIB),
        Disk(purpose="hub cache", path=CACHE, free_bytes=3 * GIB),
    ),
)
BARE = replace(LINUX, torch=None, torch_cuda=None, packages=TRANSFORMERS)

FINE = replace(
    LINUX,
    cuda=True,
    bfloat16=True,
    nvidia=True,
    cards=(RTX_3090,),
    driver="580.95.05",
    driver_cuda="13.0",
    gpu=RTX_3090.name,
    gpu_capability=(8, 6),
    gpu_bytes=24 * GIB,
)
TWO_CARDS = replace(
    FINE, cards=(A800, A800), gpu=A800.name, gpu_capability=(8, 0), gpu_bytes=80 * GIB
)
MIXED_CARDS = replace(FINE, cards=(RTX_3090, T4))
TURING = replace(FINE, cards=(T4,), bfloat16=False, gpu=T4.name, gpu_capability=(7, 5))
VOLTA = replace(
    FINE,
    cards=(V100,),
    bfloat16=False,
    gpu=V100.name,
    gpu_capability=(7, 0),
    torch="2.13.0+cu126",
    torch_cuda="12.6",
)
MAXWELL = replace(VOLTA, cards=(GTX_980,), gpu=GTX_980.name, gpu_capability=(5, 2))
NO_BITSANDBYTES = replace(FINE, packages=PYTORCH)
BROKEN_BITSANDBYTES = replace(
    FINE, bitsandbytes_fault="libnvJitLink.so.13: cannot open shared object file"
)
OLD_DRIVER = replace(
    FINE,
    cuda=False,
    bfloat16=False,
    driver="535.183.01",
    driver_cuda="12.2",
    gpu=None,
    gpu_capability=None,
    gpu_bytes=0,
)
DEAD_DRIVER = replace(
    OLD_DRIVER,
    driver=None,
    driver_cuda=None,
    cards=(),
    driver_error="Failed to initialize NVML: Driver/library version mismatch",
)
BROKEN_TORCH = replace(
    OLD_DRIVER,
    driver="580.95.05",
    driver_cuda="13.0",
    torch=None,
    torch_cuda=None,
    torch_fault="torch cannot be imported: OSError: libcudart.so.13: cannot open shared object "
    "file: No such file or directory",
)

WSL = replace(FINE, wsl=2, dxg=True, driver="581.29")
WSL_OLD_DRIVER = replace(OLD_DRIVER, wsl=2, dxg=True, driver="537.13")
WSL_NO_CARD = replace(LINUX, wsl=2)
WSL1 = replace(LINUX, wsl=1)
WINDOWS = replace(
    LINUX,
    system="Windows",
    processor="AMD64",
    distribution=None,
    cpu=None,
    torch="2.13.0+cpu",
    torch_cuda=None,
    memory_bytes=0,
)

MAC = replace(
    LINUX,
    system="Darwin",
    processor="arm64",
    distribution="macOS 15.5",
    macos=(15, 5),
    cpu="Apple M4 Pro",
    python="3.12.10",
    packages=MLX,
    mlx="0.32.4",
    metal=True,
    torch=None,
    torch_cuda=None,
    bfloat16=True,
    memory_bytes=24 * GIB,
    gpu="Apple M4 Pro",
    gpu_bytes=int(17.8 * GIB),
)
NO_METAL = replace(MAC, metal=False, bfloat16=False, gpu=None, gpu_bytes=0)
NO_MLX = replace(NO_METAL, mlx=None, packages=TRANSFORMERS)
ROSETTA = replace(NO_MLX, processor="x86_64", rosetta=True)
INTEL_MAC = replace(NO_MLX, processor="x86_64", cpu="Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz")

REPORTS = {
    "a Linux box without a card": (
        BOTH_ENGINES,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           none
mlx           MLX 0.32.4, mlx-lm 0.32.2; runs on the CPU
cuda          PyTorch 2.13.0+cpu for the CPU only, PEFT 0.21.2; runs on the CPU
bitsandbytes  0.50.2; quantizes to 4bit and 8bit here
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          cuda on the cpu: there is no GPU; PyTorch runs on the CPU
dtype         float32: the CPU is fastest and exact in it

ready""",
    ),
    "a card that is fine": (
        FINE,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           NVIDIA GeForce RTX 3090, 24.0 GiB, compute capability 8.6, bfloat16
driver        580.95.05, supports CUDA up to 13.0
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0 for CUDA 13.0, PEFT 0.21.2; runs on the GPU and the CPU
bitsandbytes  0.50.2; quantizes to 4bit and 8bit here
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          cuda on the gpu: there is an NVIDIA GPU, which PyTorch uses through CUDA
dtype         bfloat16: the GPU computes in it

ready""",
    ),
    "two cards of a kind": (
        TWO_CARDS,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           NVIDIA A800 80GB PCIe, 80.0 GiB, compute capability 8.0, bfloat16
gpu           NVIDIA A800 80GB PCIe, 80.0 GiB, compute capability 8.0, bfloat16
              a run uses one card, NVIDIA A800 80GB PCIe; CUDA_VISIBLE_DEVICES chooses another
driver        580.95.05, supports CUDA up to 13.0
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0 for CUDA 13.0, PEFT 0.21.2; runs on the GPU and the CPU
bitsandbytes  0.50.2; quantizes to 4bit and 8bit here
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          cuda on the gpu: there is an NVIDIA GPU, which PyTorch uses through CUDA
dtype         bfloat16: the GPU computes in it

ready""",
    ),
    "two cards of different kinds": (
        MIXED_CARDS,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           NVIDIA GeForce RTX 3090, 24.0 GiB, compute capability 8.6, bfloat16
gpu           Tesla T4, 15.0 GiB, compute capability 7.5, no bfloat16
              a run uses one card, NVIDIA GeForce RTX 3090; CUDA_VISIBLE_DEVICES chooses another
driver        580.95.05, supports CUDA up to 13.0
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0 for CUDA 13.0, PEFT 0.21.2; runs on the GPU and the CPU
bitsandbytes  0.50.2; quantizes to 4bit and 8bit here
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          cuda on the gpu: there is an NVIDIA GPU, which PyTorch uses through CUDA
dtype         bfloat16: the GPU computes in it

ready""",
    ),
    "a driver that hangs where no card is": (
        HANGING,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           none
driver        none that answers: nvidia-smi does not answer within 10 seconds
mlx           MLX 0.32.4, mlx-lm 0.32.2; runs on the CPU
cuda          PyTorch 2.13.0+cpu for the CPU only, PEFT 0.21.2; runs on the CPU
bitsandbytes  0.50.2; quantizes to 4bit and 8bit here
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          cuda on the cpu: there is no GPU; PyTorch runs on the CPU
dtype         float32: the CPU is fastest and exact in it

ready""",
    ),
    "a card with an old driver": (
        OLD_DRIVER,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           NVIDIA GeForce RTX 3090, 24.0 GiB, compute capability 8.6, bfloat16
driver        535.183.01, supports CUDA up to 12.2
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0 for CUDA 13.0, PEFT 0.21.2; runs on the CPU, not on the card
              hint: update the NVIDIA driver to 580 or later, and restart;
              or install the build for CUDA 12.6:
                pip install 'torch==2.13.0+cu126' --index-url https://download.pytorch.org/whl/cu126
bitsandbytes  0.50.2
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          nothing: an NVIDIA card is present, but PyTorch cannot use it: driver 535.183.01,
              PyTorch 2.13.0 built for CUDA 13.0, which needs driver 580

not ready; see the hint above, or train on the CPU: qwen-local train --device cpu""",
    ),
    "a card without bitsandbytes": (
        NO_BITSANDBYTES,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           NVIDIA GeForce RTX 3090, 24.0 GiB, compute capability 8.6, bfloat16
driver        580.95.05, supports CUDA up to 13.0
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0 for CUDA 13.0, PEFT 0.21.2; runs on the GPU and the CPU
bitsandbytes  not installed; 4bit and 8bit need it
              hint: pip install bitsandbytes
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          cuda on the gpu: there is an NVIDIA GPU, which PyTorch uses through CUDA
dtype         bfloat16: the GPU computes in it

ready; see the hint above""",
    ),
    "a card with a broken bitsandbytes": (
        BROKEN_BITSANDBYTES,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           NVIDIA GeForce RTX 3090, 24.0 GiB, compute capability 8.6, bfloat16
driver        580.95.05, supports CUDA up to 13.0
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0 for CUDA 13.0, PEFT 0.21.2; runs on the GPU and the CPU
bitsandbytes  0.50.2, but does not work: libnvJitLink.so.13: cannot open shared object file
              hint: pip install --upgrade --no-deps bitsandbytes
              or install the PyTorch build that docs/machines.md names
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          cuda on the gpu: there is an NVIDIA GPU, which PyTorch uses through CUDA
dtype         bfloat16: the GPU computes in it

ready; see the hint above""",
    ),
    "a card on which bitsandbytes knows only 4bit": (
        VOLTA,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           Tesla V100-SXM2-16GB, 16.0 GiB, compute capability 7.0, no bfloat16
driver        580.95.05, supports CUDA up to 13.0
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0+cu126 for CUDA 12.6, PEFT 0.21.2; runs on the GPU and the CPU
bitsandbytes  0.50.2; quantizes to 4bit here; 8bit needs a card of compute capability 7.5 or later;
              found Tesla V100-SXM2-16GB
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          cuda on the gpu: there is an NVIDIA GPU, which PyTorch uses through CUDA
dtype         float32: this GPU has no bfloat16, and float16 overflows

ready""",
    ),
    "a card that is too old for bitsandbytes": (
        MAXWELL,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           NVIDIA GeForce GTX 980, 4.0 GiB, compute capability 5.2, no bfloat16
driver        580.95.05, supports CUDA up to 13.0
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0+cu126 for CUDA 12.6, PEFT 0.21.2; runs on the GPU and the CPU
bitsandbytes  0.50.2; quantizes nothing here: 4bit needs a card of compute capability 6.0 or later;
              found NVIDIA GeForce GTX 980
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          cuda on the gpu: there is an NVIDIA GPU, which PyTorch uses through CUDA
dtype         float32: this GPU has no bfloat16, and float16 overflows

ready""",
    ),
    "a GPU without bfloat16": (
        TURING,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           Tesla T4, 15.0 GiB, compute capability 7.5, no bfloat16
driver        580.95.05, supports CUDA up to 13.0
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0 for CUDA 13.0, PEFT 0.21.2; runs on the GPU and the CPU
bitsandbytes  0.50.2; quantizes to 4bit and 8bit here
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          cuda on the gpu: there is an NVIDIA GPU, which PyTorch uses through CUDA
dtype         float32: this GPU has no bfloat16, and float16 overflows

ready""",
    ),
    "a PyTorch that does not import": (
        BROKEN_TORCH,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           NVIDIA GeForce RTX 3090, 24.0 GiB, compute capability 8.6, bfloat16
driver        580.95.05, supports CUDA up to 13.0
mlx           mlx and mlx-lm are not installed; not needed here
cuda          torch cannot be imported: OSError: libcudart.so.13: cannot open shared object file: No
              such file or directory
              hint: install the build for CUDA 13.0:
                pip install --force-reinstall 'torch==2.13.0+cu130' --index-url \
https://download.pytorch.org/whl/cu130
                pip install peft bitsandbytes
bitsandbytes  0.50.2
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          nothing: an NVIDIA card is present, but PyTorch cannot use it: driver 580.95.05, torch
              cannot be imported: OSError: libcudart.so.13: cannot open shared object file: No such
              file or directory

not ready; see the hint above""",
    ),
    "a driver that does not answer": (
        DEAD_DRIVER,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           an NVIDIA card that does not answer
driver        none that answers: Failed to initialize NVML: Driver/library version mismatch
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0 for CUDA 13.0, PEFT 0.21.2; runs on the CPU, not on the card
              hint: restart if the driver was just updated; else install the NVIDIA driver again
bitsandbytes  0.50.2
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          nothing: an NVIDIA card is present, but PyTorch cannot use it: no driver that answers,
              PyTorch 2.13.0 built for CUDA 13.0

not ready; see the hint above, or train on the CPU: qwen-local train --device cpu""",
    ),
    "a Mac": (
        MAC,
        """\
system        macOS 15.5
processor     Apple M4 Pro, arm64
python        3.12.10
memory        24.0 GiB, unified
gpu           Apple M4 Pro through Metal, 17.8 GiB of the memory for a run, bfloat16
mlx           MLX 0.32.4, mlx-lm 0.32.2; runs on the GPU and the CPU
cuda          torch and peft are not installed; not needed here
bitsandbytes  not installed; MLX quantizes itself
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          mlx on the gpu: there is an Apple GPU, which MLX uses through Metal
dtype         bfloat16: the GPU computes in it

ready""",
    ),
    "a virtual Mac without Metal": (
        NO_METAL,
        """\
system        macOS 15.5
processor     Apple M4 Pro, arm64
python        3.12.10
memory        24.0 GiB, unified
gpu           no Metal here
mlx           MLX 0.32.4, mlx-lm 0.32.2; runs on the CPU
              hint: a virtual machine has no Metal: run on the Mac itself
cuda          torch and peft are not installed; not needed here
bitsandbytes  not installed; MLX quantizes itself
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          mlx on the cpu: there is no GPU; MLX runs on the CPU, and there is no PyTorch
dtype         float32: the CPU is fastest and exact in it

ready; see the hint above""",
    ),
    "a Mac without MLX": (
        NO_MLX,
        """\
system        macOS 15.5
processor     Apple M4 Pro, arm64
python        3.12.10
memory        24.0 GiB, unified
gpu           an Apple GPU, for MLX only
mlx           mlx and mlx-lm are not installed
              hint: pip install mlx mlx-lm
cuda          torch and peft are not installed; not needed here
bitsandbytes  not installed
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          nothing: neither MLX nor PyTorch can be imported here

not ready; see the hint above""",
    ),
    "a Mac under Rosetta": (
        ROSETTA,
        """\
system        macOS 15.5
processor     Apple M4 Pro, x86_64
python        3.12.10 under Rosetta
memory        24.0 GiB, unified
gpu           an Apple GPU, for MLX only
mlx           mlx and mlx-lm are not installed
              hint: this Python is one for Intel, under Rosetta: install one for Apple silicon (from
              python.org, or `uv python install`), and make a new environment with it
cuda          torch and peft are not installed; not needed here
bitsandbytes  not installed
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          nothing: neither MLX nor PyTorch can be imported here

not ready; see the hint above""",
    ),
    "an Intel Mac": (
        INTEL_MAC,
        """\
system        macOS 15.5
processor     Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz, x86_64
python        3.12.10
memory        24.0 GiB
gpu           none
mlx           mlx and mlx-lm are not installed; not needed here
cuda          torch and peft are not installed
              hint: this is an Intel Mac: MLX needs Apple silicon, and PyTorch has no wheels for
              Intel Macs since 2.3; use another machine
bitsandbytes  not installed
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          nothing: neither MLX nor PyTorch can be imported here

not ready; see the hint above""",
    ),
    "WSL2 with a card": (
        WSL,
        """\
system        Ubuntu 24.04.2 LTS in WSL2 (supported as Linux)
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           NVIDIA GeForce RTX 3090, 24.0 GiB, compute capability 8.6, bfloat16
driver        581.29 (of Windows), supports CUDA up to 13.0
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0 for CUDA 13.0, PEFT 0.21.2; runs on the GPU and the CPU
bitsandbytes  0.50.2; quantizes to 4bit and 8bit here
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          cuda on the gpu: there is an NVIDIA GPU, which PyTorch uses through CUDA
dtype         bfloat16: the GPU computes in it

ready""",
    ),
    "WSL2 with an old driver": (
        WSL_OLD_DRIVER,
        """\
system        Ubuntu 24.04.2 LTS in WSL2 (supported as Linux)
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           NVIDIA GeForce RTX 3090, 24.0 GiB, compute capability 8.6, bfloat16
driver        537.13 (of Windows), supports CUDA up to 12.2
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0 for CUDA 13.0, PEFT 0.21.2; runs on the CPU, not on the card
              hint: update the NVIDIA driver in Windows to 580 or later, then run `wsl --update` and
              `wsl --shutdown` there; install no Linux driver inside WSL;
              or install the build for CUDA 12.6:
                pip install 'torch==2.13.0+cu126' --index-url https://download.pytorch.org/whl/cu126
bitsandbytes  0.50.2
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          nothing: an NVIDIA card is present, but PyTorch cannot use it: driver 537.13, PyTorch
              2.13.0 built for CUDA 13.0, which needs driver 580

not ready; see the hint above, or train on the CPU: qwen-local train --device cpu""",
    ),
    "WSL2 without a card": (
        WSL_NO_CARD,
        """\
system        Ubuntu 24.04.2 LTS in WSL2 (supported as Linux)
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           none provided by Windows (there is no /dev/dxg)
              hint: if this PC has an NVIDIA card: update its driver in Windows, then run
              `wsl --update` and `wsl --shutdown` there; install no Linux driver inside WSL
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0 for CUDA 13.0, PEFT 0.21.2; runs on the CPU
bitsandbytes  0.50.2; quantizes to 4bit and 8bit here
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          cuda on the cpu: there is no GPU; PyTorch runs on the CPU
dtype         float32: the CPU is fastest and exact in it

ready; see the hint above""",
    ),
    "WSL1": (
        WSL1,
        """\
system        Ubuntu 24.04.2 LTS in WSL1: WSL1 is not supported: it has no GPU and no Linux kernel
              hint: turn this distribution into WSL2: run `wsl --set-version NAME 2` in PowerShell;
              `wsl --list` shows its name
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           none
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0 for CUDA 13.0, PEFT 0.21.2
bitsandbytes  0.50.2
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          nothing: WSL1 is not supported: it has no GPU and no Linux kernel

not ready; see the hint above""",
    ),
    "Windows": (
        WINDOWS,
        """\
system        Windows: native Windows is not supported
              hint: use WSL2: run `wsl --install` in PowerShell, restart, and install qwen-local in
              there
processor     AMD64
python        3.12.3
memory        unknown
gpu           none
mlx           mlx and mlx-lm are not installed; not needed here
cuda          PyTorch 2.13.0+cpu for the CPU only, PEFT 0.21.2
bitsandbytes  0.50.2
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          nothing: native Windows is not supported

not ready; see the hint above""",
    ),
    "nothing installed": (
        BARE,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           none
mlx           mlx and mlx-lm are not installed; not needed here
cuda          torch and peft are not installed
              hint: pip install torch peft
bitsandbytes  not installed
transformers  5.23.0
disk          412.0 GiB free in the working folder (/home/me/qwen)
disk          412.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
auto          nothing: neither MLX nor PyTorch can be imported here

not ready; see the hint above""",
    ),
    "disks that are full": (
        FULL,
        """\
system        Ubuntu 24.04.2 LTS
processor     AMD Ryzen 9 5900X 12-Core Processor, x86_64
python        3.12.3
memory        64.0 GiB
gpu           none
mlx           MLX 0.32.4, mlx-lm 0.32.2; runs on the CPU
cuda          PyTorch 2.13.0+cpu for the CPU only, PEFT 0.21.2; runs on the CPU
bitsandbytes  0.50.2; quantizes to 4bit and 8bit here
transformers  5.23.0
disk          1.0 GiB free in the working folder (/home/me/qwen)
              hint: work in a folder on a larger disk, or make room
disk          3.0 GiB free in the hub cache (/home/me/.cache/huggingface/hub)
              hint: set HF_HOME to a folder on a larger disk, or make room
auto          cuda on the cpu: there is no GPU; PyTorch runs on the CPU
dtype         float32: the CPU is fastest and exact in it

ready; see the 2 hints above""",
    ),
}


@pytest.mark.parametrize(("found", "report"), REPORTS.values(), ids=REPORTS.keys())
def test_the_report_says_what_is_here_what_auto_takes_and_the_mend(
    found: Machine, report: str
) -> None:
    assert diagnose(found).describe() == report


@pytest.mark.parametrize(("found", "report"), REPORTS.values(), ids=REPORTS.keys())
def test_lines_fit_a_terminal_but_for_commands(found: Machine, report: str) -> None:
    for line in report.splitlines():
        assert len(line) <= 100 or line.strip().startswith("pip install")


# --- the hub ---

REACHED = Hub(
    endpoint="https://huggingface.co", offline=False, token=False, problem=None, hint=None
)


@pytest.mark.parametrize(
    ("hub", "line"),
    [
        (REACHED, "hub           https://huggingface.co: answers; no token is set"),
        (
            replace(REACHED, token=True, endpoint="https://mirror.example"),
            "hub           https://mirror.example: answers; a token is set",
        ),
        (
            replace(REACHED, offline=True),
            "hub           https://huggingface.co: not contacted, as HF_HUB_OFFLINE is set",
        ),
        (
            replace(REACHED, problem="cannot be reached: timed out", hint="check the connection"),
            "hub           https://huggingface.co: cannot be reached: timed out; no token is set\n"
            "              hint: check the connection",
        ),
    ],
)
def test_the_hub_has_a_line_where_it_was_asked(hub: Hub, line: str) -> None:
    assert f"\n{line}\nauto " in diagnose(MAC, hub).describe()


# --- for a program ---


def test_json_says_the_same() -> None:
    found = diagnose(OLD_DRIVER).to_json()
    fix = (
        "update the NVIDIA driver to 580 or later, and restart;\n"
        "or install the build for CUDA 12.6:\n"
        "  pip install 'torch==2.13.0+cu126' --index-url https://download.pytorch.org/whl/cu126"
    )
    problem = (
        "an NVIDIA card is present, but PyTorch cannot use it: driver 535.183.01, PyTorch 2.13.0 "
        "built for CUDA 13.0, which needs driver 580"
    )
    machine = found.pop("machine")
    assert found == {
        "ready": False,
        "verdict": (
            "not ready; see the hint above, or train on the CPU: qwen-local train --device cpu"
        ),
        "backends": {
            "mlx": {
                "name": "mlx",
                "version": None,
                "devices": (),
                "problem": "mlx and mlx-lm are not installed",
                "fix": None,
            },
            "cuda": {
                "name": "cuda",
                "version": "2.13.0",
                "devices": ("cpu",),
                "problem": problem,
                "fix": fix,
            },
        },
        "auto": None,
        "reason": problem,
        "dtype": None,
        "dtype_reason": None,
        "hints": [{"topic": "cuda", "hint": fix}],
        "hub": None,
    }
    assert machine["driver"] == "535.183.01"
    assert machine["cards"] == (
        {"name": RTX_3090.name, "memory_bytes": 24 * GIB, "capability": (8, 6)},
    )
    assert machine["disks"][1] == {
        "purpose": "hub cache",
        "path": CACHE,
        "free_bytes": 412 * GIB,
    }


def test_json_of_a_machine_that_is_fine_says_what_auto_takes() -> None:
    found = diagnose(MAC, REACHED).to_json()
    assert {key: found[key] for key in ("ready", "verdict", "auto", "dtype", "hints")} == {
        "ready": True,
        "verdict": "ready",
        "auto": {"backend": "mlx", "device": "gpu"},
        "dtype": "bfloat16",
        "hints": [],
    }
    assert found["hub"] == {
        "endpoint": "https://huggingface.co",
        "offline": False,
        "token": False,
        "problem": None,
        "hint": None,
    }
