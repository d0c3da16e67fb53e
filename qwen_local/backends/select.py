"""Which engine runs, on which device, in which dtype, and why.

`probe` looks at the machine; the choices themselves are pure functions of what it saw, so that
every machine can be tried on any other.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from qwen_local.errors import BackendError

if TYPE_CHECKING:
    from qwen_local.backends.base import Backend, Setup

Engine = Literal["mlx", "cuda"]
Device = Literal["cpu", "gpu"]
DType = Literal["float32", "bfloat16", "float16"]

INSTALL = {
    "mlx": "pip install mlx 'mlx-lm>=0.32'; on Linux 'mlx[cpu]' instead of mlx",
    "cuda": "pip install torch peft",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What an engine can stand on."""

    system: str
    """`Linux`, `Darwin`, ..."""
    processor: str
    mlx: str | None
    """Version of MLX with mlx-lm beside it, None where one of them is missing or broken."""
    metal: bool
    torch: str | None
    """Version of PyTorch with PEFT beside it, None where one of them is missing or broken."""
    torch_cuda: str | None
    """CUDA version that this PyTorch was built for, None where for the CPU only."""
    cuda: bool
    """Whether this PyTorch can use an NVIDIA card."""
    bfloat16: bool
    """Whether the GPU computes in bfloat16 itself, and does not emulate it."""
    nvidia: bool
    """Whether an NVIDIA card is present, usable or not."""
    driver: str | None
    """Version of the NVIDIA driver, None where there is none that answers."""
    memory_bytes: int
    """Of the machine."""
    gpu: str | None = None
    """The name of the GPU that an engine can use."""
    gpu_bytes: int
    """That a program may use on the GPU; 0 without one."""

    def bytes_on(self, device: Device) -> int:
        """Memory for a run on this device."""
        return self.gpu_bytes if device == "gpu" else self.memory_bytes

    @property
    def lacks_mlx(self) -> bool:
        """Whether this is a Mac whose GPU goes unused for want of MLX."""
        return self.system == "Darwin" and self.processor == "arm64" and self.mlx is None


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine on a device, with the reason."""

    backend: Engine
    device: Device
    reason: str


def probe() -> Machine:
    """Look at this machine. Imports the engines that are installed: MLX first, see blas.py."""
    mlx, torch = _imported("mlx"), _imported("cuda")
    metal = mlx is not None and mlx.metal.is_available()
    cuda = bfloat16 = False
    if torch is not None and torch.cuda.is_available():
        cuda, bfloat16 = True, torch.cuda.is_bf16_supported(including_emulation=False)
    nvidia_smi = shutil.which("nvidia-smi")
    driver = None if nvidia_smi is None else _driver(nvidia_smi)
    return Machine(
        system=platform.system(),
        processor=platform.machine(),
        mlx=None if mlx is None else metadata.version("mlx"),
        metal=metal,
        torch=None if torch is None else metadata.version("torch"),
        torch_cuda=None if torch is None else torch.version.cuda,
        cuda=cuda,
        bfloat16=metal or bfloat16,
        nvidia=driver is not None or _nvidia_in_the_machine(),
        driver=driver,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpu=_gpu_name(mlx if metal else None, torch if cuda else None),
        gpu_bytes=_gpu_bytes(mlx if metal else None, torch if cuda else None),
    )


def choose(machine: Machine, backend: str = "auto", device: str = "auto") -> Choice:
    """The engine and device for `--backend` and `--device`.

    Raises:
        BackendError: what was asked for cannot run here, or an NVIDIA card is present that
            PyTorch cannot use (a quiet run on the CPU would not be what its owner wants).
    """
    if backend == "auto":
        return _automatic(machine, device)
    installed = machine.mlx if backend == "mlx" else machine.torch
    if installed is None:
        packages = "mlx and mlx-lm" if backend == "mlx" else "torch and peft"
        raise BackendError.at(
            f"--backend {backend}", f"{packages} cannot be imported here", INSTALL[backend]
        )
    engine: Engine = "mlx" if backend == "mlx" else "cuda"
    usable = machine.metal if engine == "mlx" else machine.cuda
    chip = "Apple GPU" if engine == "mlx" else "NVIDIA GPU"
    if device == "cpu":
        return Choice(engine, "cpu", "asked for by --backend and --device")
    if usable:
        return Choice(engine, "gpu", f"asked for by --backend; there is an {chip}")
    where = f"--backend {backend} --device {device}"
    if engine == "cuda" and machine.nvidia:
        raise _card_error(machine, where)
    if device == "gpu":
        raise BackendError.at(where, f"expected an {chip}; found none", "pass --device cpu")
    return Choice(engine, "cpu", f"asked for by --backend; there is no {chip}")


def _automatic(machine: Machine, device: str) -> Choice:
    """`--backend auto`: Metal, then CUDA, then PyTorch on the CPU."""
    where = f"--backend auto --device {device}"
    if device != "cpu":
        if machine.metal:
            return Choice("mlx", "gpu", "there is an Apple GPU, which MLX uses through Metal")
        if machine.cuda:
            return Choice("cuda", "gpu", "there is an NVIDIA GPU, which PyTorch uses through CUDA")
        if machine.nvidia:
            raise _card_error(machine, where)
        if device == "gpu":
            mend = INSTALL["mlx"] if machine.lacks_mlx else "pass --device cpu"
            raise BackendError.at(where, "expected a GPU that an engine can use; found none", mend)
    why = "asked for by --device" if device == "cpu" else "there is no GPU"
    if device != "cpu" and machine.lacks_mlx:
        why = "MLX, which would use the GPU of this Mac, cannot be imported"
    if machine.torch:
        return Choice("cuda", "cpu", f"{why}; PyTorch runs on the CPU")
    if machine.mlx:
        return Choice("mlx", "cpu", f"{why}; MLX runs on the CPU, and there is no PyTorch")
    mend = INSTALL["mlx" if machine.system == "Darwin" else "cuda"]
    raise BackendError.at(where, "neither MLX nor PyTorch can be imported here", mend)


def unusable_card(machine: Machine) -> tuple[str, str]:
    """(what is wrong with the NVIDIA card of this machine, the mend), naming driver and wheel."""
    driver = f"driver {machine.driver}" if machine.driver else "no driver that answers"
    wheel = "no PyTorch that can be imported"
    if machine.torch:
        built_for = f"CUDA {machine.torch_cuda}" if machine.torch_cuda else "the CPU only"
        wheel = f"PyTorch {machine.torch} built for {built_for}"
    problem = f"an NVIDIA card is present, but PyTorch cannot use it: {driver}, {wheel}"
    if machine.driver is None:
        return problem, "install the NVIDIA driver, or restart if it was just updated"
    if machine.torch is None:
        return problem, INSTALL["cuda"]
    return problem, (
        "install a PyTorch wheel for a CUDA version that the driver supports "
        "(`nvidia-smi` shows it), or a newer driver"
    )


def _card_error(machine: Machine, where: str) -> BackendError:
    problem, mend = unusable_card(machine)
    return BackendError.at(where, problem, f"{mend}; or pass --device cpu")


def resolve_dtype(
    machine: Machine, choice: Choice, wanted: DType | Literal["auto"]
) -> tuple[DType, str]:
    """(dtype, reason) for `model.dtype`."""
    if wanted != "auto":
        return wanted, "asked for by model.dtype"
    if choice.device == "cpu":
        return "float32", "the CPU is fastest and exact in it"
    if machine.bfloat16:
        return "bfloat16", "the GPU computes in it"
    return "float32", "this GPU has no bfloat16, and float16 overflows"


def open_backend(choice: Choice, setup: Setup) -> Backend:
    """Load the model into the engine."""
    if choice.backend == "mlx":
        import qwen_local.backends.mlx.engine as mlx_engine

        return mlx_engine.MlxBackend(setup)
    import qwen_local.backends.cuda.engine as torch_engine

    return torch_engine.TorchBackend(setup)


def _imported(engine: Engine) -> ModuleType | None:
    """mlx.core or torch; None where it or its companion is missing or broken."""
    try:
        if engine == "mlx":
            metadata.version("mlx-lm")
            import_module("qwen_local.backends.mlx")  # before mlx.core: see blas.py
            return import_module("mlx.core")
        metadata.version("peft")
        return import_module("torch")
    except (ImportError, OSError):  # OSError: a shared library beneath it is missing
        return None


def _driver(nvidia_smi: str) -> str | None:
    """The version of the NVIDIA driver, where it answers in time."""
    query = [nvidia_smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.split("\n", 1)[0].strip() or None


def _nvidia_in_the_machine() -> bool:
    """Whether a display controller of NVIDIA is there, driver or not (the tools alone are none)."""
    if Path("/dev/nvidia0").exists():
        return True
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
        except OSError:
            continue
        if vendor.strip() == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def _gpu_name(mlx: ModuleType | None, torch: ModuleType | None) -> str | None:
    if mlx is not None:
        return str(mlx.device_info()["device_name"])
    return None if torch is None else str(torch.cuda.get_device_name(0))


def _gpu_bytes(mlx: ModuleType | None, torch: ModuleType | None) -> int:
    """Of the engine that has a GPU; on a Mac Metal's working set, out of the unified memory."""
    if mlx is not None:
        return int(mlx.device_info()["max_recommended_working_set_size"])
    if torch is not None:
        return int(torch.cuda.get_device_properties(0).total_memory)
    return 0
