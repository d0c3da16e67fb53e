"""What `doctor` says of machines that are not here; whole texts."""

from __future__ import annotations

import pytest

from qwen_local.backends.doctor import diagnose
from qwen_local.backends.select import Machine

NOTHING = {
    "mlx": None,
    "metal": False,
    "torch": None,
    "torch_cuda": None,
    "cuda": False,
    "bfloat16": False,
    "nvidia": False,
    "driver": None,
    "memory_bytes": 16 * 10**9,
    "gpu_bytes": 0,
}


def machine(system: str = "Linux", processor: str = "x86_64", **has: object) -> Machine:
    return Machine(system=system, processor=processor, **{**NOTHING, **has})  # type: ignore[arg-type]


MAC = machine("Darwin", "arm64", mlx="0.32.4", metal=True, bfloat16=True, gpu_bytes=12 * 10**9)
MAC_WITHOUT_METAL = machine("Darwin", "x86_64", mlx="0.32.4", torch="2.13.0")
NVIDIA = machine(
    torch="2.13.0", torch_cuda="13.0", cuda=True, bfloat16=True, nvidia=True, driver="580.65.06"
)
UNUSABLE = machine(torch="2.13.0+cpu", nvidia=True, driver="580.65.06")
BOTH_ON_A_CPU = machine(mlx="0.32.4", torch="2.13.0+cpu")
BARE = machine()

REPORTS = {
    "a Mac with Metal": (
        MAC,
        """\
machine  Darwin arm64
mlx      0.32.4, runs on gpu and cpu
cuda     cannot be imported
         hint: pip install torch peft
auto     mlx on the gpu in bfloat16: there is an Apple GPU, which MLX uses through Metal""",
    ),
    "a Mac without Metal": (
        MAC_WITHOUT_METAL,
        """\
machine  Darwin x86_64
mlx      0.32.4, runs on cpu
         hint: MLX finds no Metal: use a native arm64 Python on macOS 14 or later
cuda     2.13.0, runs on cpu
auto     cuda on the cpu in float32: there is no GPU; PyTorch runs on the CPU""",
    ),
    "an NVIDIA card": (
        NVIDIA,
        """\
machine  Linux x86_64
mlx      cannot be imported
         hint: pip install mlx 'mlx-lm>=0.32'; on Linux 'mlx[cpu]' instead of mlx
cuda     2.13.0, runs on gpu and cpu
auto     cuda on the gpu in bfloat16: there is an NVIDIA GPU, which PyTorch uses through CUDA""",
    ),
    "an NVIDIA card that PyTorch cannot use": (
        UNUSABLE,
        """\
machine  Linux x86_64
mlx      cannot be imported
         hint: pip install mlx 'mlx-lm>=0.32'; on Linux 'mlx[cpu]' instead of mlx
cuda     2.13.0+cpu, runs on cpu
         hint: install a PyTorch wheel for a CUDA version that the driver supports \
(`nvidia-smi` shows it), or a newer driver
auto     nothing: an NVIDIA card is present, but PyTorch cannot use it: driver 580.65.06, \
PyTorch 2.13.0+cpu built for the CPU only""",
    ),
    "both engines on a CPU": (
        BOTH_ON_A_CPU,
        """\
machine  Linux x86_64
mlx      0.32.4, runs on cpu
cuda     2.13.0+cpu, runs on cpu
auto     cuda on the cpu in float32: there is no GPU; PyTorch runs on the CPU""",
    ),
    "nothing installed": (
        BARE,
        """\
machine  Linux x86_64
mlx      cannot be imported
         hint: pip install mlx 'mlx-lm>=0.32'; on Linux 'mlx[cpu]' instead of mlx
cuda     cannot be imported
         hint: pip install torch peft
auto     nothing: neither MLX nor PyTorch can be imported here""",
    ),
}


@pytest.mark.parametrize(("found", "report"), REPORTS.values(), ids=REPORTS.keys())
def test_the_report_says_what_is_here_what_auto_takes_and_the_mend(
    found: Machine, report: str
) -> None:
    assert diagnose(found).describe() == report


def test_json_says_the_same() -> None:
    assert diagnose(UNUSABLE).to_json() == {
        "system": "Linux x86_64",
        "backends": {
            "mlx": {
                "name": "mlx",
                "version": None,
                "devices": (),
                "mend": "pip install mlx 'mlx-lm>=0.32'; on Linux 'mlx[cpu]' instead of mlx",
            },
            "cuda": {
                "name": "cuda",
                "version": "2.13.0+cpu",
                "devices": ("cpu",),
                "mend": "install a PyTorch wheel for a CUDA version that the driver supports "
                "(`nvidia-smi` shows it), or a newer driver",
            },
        },
        "auto": None,
        "reason": "an NVIDIA card is present, but PyTorch cannot use it: driver 580.65.06, "
        "PyTorch 2.13.0+cpu built for the CPU only",
        "dtype": None,
    }
    assert diagnose(MAC).to_json()["auto"] == "mlx on the gpu"
